"""Runs of pooled text models: recorded, planned, resumed, on workers, in passes, at a site."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import text_folder, texts

import fedpeft
from fedpeft.build.model import build_tuned
from fedpeft.core.errors import ConfigError, ModelError
from fedpeft.data.examples import Federated
from fedpeft.data.tensors import TextExamples, flat_tokens
from fedpeft.experiment.read import apply_overrides, dump_experiment, validate
from fedpeft.experiment.resolve import resolve
from fedpeft.experiment.site_file import SiteConfig
from fedpeft.federation.site_setup import prepare
from fedpeft.models.pooling import pooling_of
from fedpeft.plan.plan import check_shapes, make_plan
from fedpeft.rounds.handshake import model_facts
from fedpeft.runs.folder import RunFolder, experiment_digest, stored_experiment
from fedpeft.runs.load import load_run

FIGURES = ("trainable_parameters", "total_parameters", "payload_bytes")


@pytest.fixture
def table(tmp_path: Path) -> dict[str, object]:
    rows = texts(40)
    (tmp_path / "data").mkdir()
    for split, part in (("train", rows[:30]), ("test", rows[30:])):
        lines = "".join(json.dumps(row) + "\n" for row in part)
        (tmp_path / "data" / f"{split}.jsonl").write_text(lines)
    folder = text_folder(
        tmp_path / "model", "bert", {"initializer_range": 0.3}, {"pad_token": "<pad>"}
    )
    return {
        "model": {"name": str(folder), "pooling": "mean"},
        "tuning": {"method": "lora"},
        "data": {
            "source": str(tmp_path / "data"),
            "partition": {"clients": 3, "scheme": "iid", "min_examples": 1},
        },
        "federation": {"rounds": 2, "clients_per_round": 2},
        "client": {"epochs": 1, "lr": 0.1, "batch_size": 4},
        "engine": {"workers": 1, "clients_per_pass": 1},
    }


def run(table: dict[str, object], out: Path, **more: object) -> dict[str, object]:
    resume = bool(more.pop("resume", False))
    dotted = {key.replace("__", "."): value for key, value in more.items()}
    return dict(fedpeft.run(table, dotted, out=out, resume=resume))


@pytest.mark.parametrize("method", ["lora", "full", "head", "prompt_tuning"])
def test_a_run_records_its_pooling_and_its_plan_counted_right(method, table, tmp_path):
    table["tuning"] = {"method": method}
    summary = run(table, tmp_path / "run")
    recorded = tomllib.loads((tmp_path / "run/experiment.toml").read_text())
    assert recorded["model"]["pooling"] == "mean"
    planned = make_plan(validate(table, "test")).as_json()
    tuned = load_run(tmp_path / "run").tuned
    assert pooling_of(tuned.loaded.module) == "mean"
    total = sum(parameter.numel() for parameter in tuned.model.parameters())
    assert [planned[key] for key in FIGURES[:2]] == [tuned.spec.num_params, total]
    assert planned["payload_bytes"] == summary["payload_bytes"]
    own = make_plan(validate({**table, "model": {"name": table["model"]["name"]}}, "test"))
    assert own.as_json()["total_parameters"] == total + 16 * 17, "BERT's own pooler"


def test_workers_and_a_resume_change_no_bit_and_passes_rounding_only(table, tmp_path):
    straight = run(table, tmp_path / "straight")
    assert (
        run(table, tmp_path / "workers", engine__workers=2)["delta_digest"]
        == (straight["delta_digest"])
    )
    run(table, tmp_path / "resumed", federation__rounds=1)
    resumed = run(table, tmp_path / "resumed", resume=True)
    assert resumed["delta_digest"] == straight["delta_digest"]
    run(table, tmp_path / "passes", engine__clients_per_pass=2)
    one, many = (load_run(tmp_path / name).tuned for name in ("straight", "passes"))
    for name, value in one.parameters.items():
        torch.testing.assert_close(many.parameters[name], value, atol=1e-5, rtol=1e-4)
    other = run(table, tmp_path / "first", model__pooling="cls")
    assert other["delta_digest"] != straight["delta_digest"]


def test_unset_is_pooler_and_changes_no_digest(table, tmp_path):
    del table["model"]["pooling"]
    unset, pooler = run(table, tmp_path / "a"), run(table, tmp_path / "b", model__pooling="pooler")
    assert unset["delta_digest"] == pooler["delta_digest"]
    text = (tmp_path / "a/experiment.toml").read_text()
    assert "pooling" not in text
    experiments = [stored_experiment(RunFolder(tmp_path / name)) for name in ("a", "b")]
    assert len({experiment_digest(experiment) for experiment in experiments}) == 2


def test_a_site_pools_as_its_server_does(table, tmp_path):
    table["federation"]["clients_per_round"] = 1
    table["model"]["num_labels"] = 2
    server = resolve(validate(table, "test"))
    site = SiteConfig.model_validate(
        {
            **{"name": "a", "state": str(tmp_path / "state")},
            "model": {"allow": [table["model"]["name"]]},
            "data": {"source": table["data"]["source"]},
        }
    )
    ready = prepare(site, dump_experiment(server.experiment))
    expected = model_facts(build_tuned(server, 2))
    assert expected.items() <= ready.facts.items()
    del table["model"]["pooling"]
    other = prepare(site, dump_experiment(resolve(validate(table, "test")).experiment))
    assert not expected.items() <= other.facts.items(), "the negative control"


def test_a_model_from_python_is_recorded_with_its_pooling(tmp_path):
    request = fedpeft.ModelRequest("preset:tiny-bert", num_labels=2, seed=1, pooling="mean")
    tuned = fedpeft.tune(fedpeft.load_model(request), fedpeft.TuningRequest("lora", seed=1))
    rows = [list(range(3, 6 + number % 5)) for number in range(24)]
    labels = torch.arange(24) % 2
    examples = TextExamples(*flat_tokens(rows), labels, 0)
    clients = {f"client-{i}": np.arange(8 * i, 8 * i + 8) for i in range(3)}
    data = Federated(examples, examples, clients, 2, None, labels.numpy(), "texts", {})
    quick = {"federation.rounds": 1, "federation.clients_per_round": 2, "engine.workers": 1}
    result = fedpeft.simulate(tuned, data, {**quick, "client.epochs": 1}, out=tmp_path / "run")
    batch = {
        key: examples.batch(range(24), seed=None)[key] for key in ("input_ids", "attention_mask")
    }
    with torch.no_grad():
        found = fedpeft.load(tmp_path / "run")(**batch).logits
        torch.testing.assert_close(found, result.tuned.model(**batch).logits)


def test_what_no_model_has_is_refused(table):
    with pytest.raises(ConfigError, match=r"model.pooling: .*'mean', 'cls' or 'pooler'"):
        validate(apply_overrides(table, [("model.pooling", "max")]), "test")
    pictures = validate({"model": {"name": "preset:tiny-vit", "pooling": "mean"}}, "test")
    for read in (check_shapes, make_plan):
        with pytest.raises(ModelError, match="its task is image-classification"):
            read(pictures)
