"""A model and data of the user's own, from Python."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import fedpeft
from fedpeft.build.run import build_run
from fedpeft.core.deltas import digest_of
from fedpeft.core.errors import ConfigError, PrivacyError
from fedpeft.experiment import read
from fedpeft.experiment.resolve import resolve
from fedpeft.launch import start
from fedpeft.report.write import write_report
from fedpeft.results.runs import read_run
from fedpeft.runs.records import read_records
from fedpeft.runs.status import read_status


def forward(net, batch):
    return net(batch["inputs"])


TASK = fedpeft.classification_task(forward)


def net():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = (nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 3))
        return nn.Sequential(*layers)


def data():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, 6, generator=generator)
    y = (x @ torch.randn(6, 3, generator=generator)).argmax(1)
    clients = fedpeft.PartitionRequest("dirichlet", clients=8, alpha=1.0, min_examples=1)
    return fedpeft.from_torch(
        TensorDataset(x[:300], y[:300]), TensorDataset(x[300:], y[300:]), clients
    )


OPTIONS = {
    "full": {},
    "head": {},
    "bias": {},
    "adapter": {"after": ["2"], "reduction": 2},
    "lora": {"target_modules": ["0", "2"], "r": 4},
    "ia3": {"target_modules": ["0", "2"], "feedforward_modules": ["2"]},
}
SETTINGS = {
    "federation.rounds": 3,
    "federation.clients_per_round": 8,
    "client.epochs": 3,
    "client.lr": 0.1,
    "client.batch_size": 8,
    "engine.workers": 1,
}


def simulate(method="lora", **options):
    loaded = fedpeft.wrap_module(net(), task=TASK, head=["4"], name="perceptron")
    tuned = fedpeft.tune(loaded, fedpeft.TuningRequest(method, OPTIONS[method], seed=1))
    settings = {**SETTINGS, **options.pop("settings", {})}
    return fedpeft.simulate(tuned, data(), settings, **options)


@pytest.mark.parametrize("method", OPTIONS)
def test_every_method_learns_on_a_plain_module(method):
    result = simulate(method)
    first, last = (result.records[i]["metrics"] for i in (0, -1))
    assert len(result.records) == 3 and not any(r["failures"] for r in result.records)
    assert last["loss"] < first["loss"] < 1.2
    assert result.totals.last["accuracy"] == last["accuracy"]


def test_the_returned_model_has_the_final_delta():
    result = simulate("head")
    test = data().test
    batch = test.batch(range(len(test)), seed=None)
    with torch.no_grad():
        right = result.model(batch["inputs"]).argmax(1) == batch["labels"]
    assert right.double().mean().item() == pytest.approx(result.totals.last["accuracy"])
    assert not torch.equal(result.tuned.parameters["4.weight"], net()[4].weight)
    assert torch.equal(dict(result.model.named_parameters())["0.weight"], net()[0].weight)


def test_a_folder_keeps_and_resumes(tmp_path):
    straight = simulate(out=tmp_path / "a")
    simulate(out=tmp_path / "b", settings={"federation.rounds": 1})
    resumed = simulate(out=tmp_path / "b")
    assert len(resumed.records) == 3
    assert torch.equal(*(r.tuned.parameters["4.weight"] for r in (straight, resumed)))
    in_memory = simulate()
    assert torch.equal(*(r.tuned.parameters["4.weight"] for r in (straight, in_memory)))


def test_settings_of_model_or_data_are_refused():
    with pytest.raises(
        ConfigError, match=r"tuning\.method: model, tuning and data of a simulation"
    ):
        simulate(settings={"tuning.method": "bias"})
    with pytest.raises(ConfigError, match=r"client\.lrr: unknown key; did you mean 'lr'"):
        simulate(settings={"client.lrr": 1})


def test_public_names_are_sorted_and_exist():
    assert fedpeft.__all__ == sorted(fedpeft.__all__)
    assert all(getattr(fedpeft, name) is not None for name in fedpeft.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nope'"):
        fedpeft.nope  # noqa: B018


def test_clients_are_evaluated_in_memory_too():
    result = simulate("head", settings={"federation.evaluate_clients": True})
    assert all(len(record["client_metrics_by_class"]) == 8 for record in result.records)


PRIVATE = {"mode": "central", "noise_multiplier": 2.0, "reproducible_noise": True}


def from_file(tmp_path, **privacy):
    table = {
        "model": {"name": "preset:tiny-vit"},
        "data": {"partition": {"clients": 8}},
        "federation": {"rounds": 2, "clients_per_round": 4, "sampling": "poisson"},
        "client": {"epochs": 1, "lr": 0.05},
        "engine": {"workers": 1},
        "privacy": privacy,
    }
    experiment = read.validate(table, "test")
    built = build_run(resolve(experiment))
    settings = {
        f"{s}.{k}": v for s in ("federation", "client", "engine") for k, v in table[s].items()
    }
    result = fedpeft.simulate(built.tuned, built.data, settings, privacy=privacy)
    return (
        start.run(experiment, tmp_path / "file"),
        result,
        read_records(tmp_path / "file/rounds.jsonl"),
    )


def test_a_private_simulation_equals_the_run_from_the_file(tmp_path):
    summary, result, records = from_file(tmp_path, **PRIVATE)
    delta = result.tuned.spec.flatten(dict(result.tuned.parameters))
    assert digest_of(delta.detach()) == summary["delta_digest"]
    timeless = [[{**r, "seconds": 0} for r in found] for found in (records, result.records)]
    assert timeless[0] == timeless[1]
    assert result.records[-1]["epsilon"] == summary["epsilon"]
    other = simulate("head", privacy={**PRIVATE, "noise_multiplier": 2.4})
    assert other.records[0]["noise_deviation"] == pytest.approx(2.4 / 8)


def test_a_private_simulation_ends_at_its_budget():
    spent = [r["epsilon"] for r in simulate("head", privacy=PRIVATE).records]
    short = simulate("head", privacy={**PRIVATE, "epsilon": (spent[0] + spent[1]) / 2})
    assert [r["epsilon"] for r in short.records] == spent[:1]
    assert "accuracy" in short.records[-1]["metrics"]


def test_unsound_privacy_is_refused():
    with pytest.raises(PrivacyError, match=r"evaluate_clients: found true.*labels"):
        simulate("head", privacy=PRIVATE, settings={"federation.evaluate_clients": True})
    with pytest.raises(ConfigError, match=r"privacy\.modus: unknown key; did you mean 'mode'"):
        simulate("head", privacy={"modus": "central"})
    with pytest.raises(ConfigError, match=r"privacy\.mode: model.*privacy=\{\.\.\.\}"):
        simulate("head", settings={"privacy.mode": "central"})


class Points(torch.utils.data.Dataset):
    def __init__(self, seed: int, count: int) -> None:
        self.x = torch.randn(count, 6, generator=torch.Generator().manual_seed(seed))

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        return {"inputs": self.x[index], "labels": self.x[index].sum()}


def absolute(net, batch):
    return (net(batch["inputs"])[:, 0] - batch["labels"]).abs()


def mean_error(loss, count, correct):
    return loss / count


MAE = fedpeft.Metric("mae", "min", mean_error, label="MAE", lowest=0.0, digits=3)


def test_a_metric_of_ones_own_reaches_summary_status_and_report(tmp_path):
    task = fedpeft.custom_task(absolute, metric=MAE)
    for seed in (1, 2):
        loaded = fedpeft.wrap_module(net(), task=task, head=["4"], name="perceptron")
        tuned = fedpeft.tune(loaded, fedpeft.TuningRequest("head", seed=seed))
        points = fedpeft.from_torch(
            Points(0, 80), Points(1, 40), fedpeft.PartitionRequest("iid", clients=8)
        )
        settings = {**SETTINGS, "seed": seed, "client.lr": 0.01}
        result = fedpeft.simulate(tuned, points, settings, out=tmp_path / "runs" / str(seed))
    figures = [record["metrics"]["mae"] for record in result.records]
    assert result.totals.best == min(figures) == figures[-1] < figures[0]
    summary = json.loads((tmp_path / "runs" / "2" / "summary.json").read_text())
    assert (summary["metric"], summary["best_mae"]) == ("mae", min(figures))
    assert "best_accuracy" not in summary and "accuracy" not in summary
    status = read_status(tmp_path / "runs" / "2")
    assert (status["metric"], status["best_mae"]) == ("mae", min(figures))
    read = read_run(tmp_path / "runs" / "2")
    assert read.metric == dataclasses.replace(MAE, from_sums=None)
    write_report([tmp_path / "runs"], tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "MAE, test set (lower is better)" in page and "ccuracy" not in page
