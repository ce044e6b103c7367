"""A model and data of the user's own, from Python."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import fedpeft
from fedpeft.core.errors import ConfigError


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
    assert all(len(record["client_metrics"]) == 8 for record in result.records)
