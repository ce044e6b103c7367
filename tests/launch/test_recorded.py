"""What a simulation's folder says of the model: what was used is what is recorded."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fedpeft
from fedpeft.core.errors import ConfigError, ModelError
from fedpeft.experiment.read import read_toml
from fedpeft.export.export import export_run

SETTINGS = {
    "federation.rounds": 1,
    "federation.clients_per_round": 2,
    "client.epochs": 1,
    "client.lr": 0.05,
    "engine.workers": 1,
}


@pytest.fixture(scope="module")
def data():
    inputs = fedpeft.load_model(fedpeft.ModelRequest("vit-glyphs-8")).inputs
    clients = fedpeft.PartitionRequest(clients=4, min_examples=1)
    return fedpeft.load_data(fedpeft.DataRequest(budget=60, partition=clients), inputs)


def tuned(method, options=None, *, seed=0, **model):
    request = fedpeft.ModelRequest(model.pop("name", "vit-glyphs-8"), num_labels=10, **model)
    loaded = fedpeft.load_model(request)
    return fedpeft.tune(loaded, fedpeft.TuningRequest(method, options or {}, seed=seed))


def logits(model, data):
    batch = data.test.batch(range(16), seed=None)
    with torch.no_grad():
        return model(pixel_values=batch["pixel_values"]).logits


USED = [
    ("lora", {"lora_alpha": 64}),
    ("lora", {"r": 2, "target_modules": ("q_proj",), "rank_pattern": {"layers.1.q_proj": 3}}),
    ("vera", {"r": 4}),
    ("adapter", {"reduction": 4}),
]


@pytest.mark.parametrize(("method", "options"), USED)
def test_load_and_export_give_the_model_that_was_trained(method, options, data, tmp_path):
    result = fedpeft.simulate(tuned(method, options, seed=5), data, SETTINGS, out=tmp_path / "run")
    expected = logits(result.model, data)
    assert torch.equal(logits(fedpeft.load(tmp_path / "run"), data), expected)
    export_run(tmp_path / "run", tmp_path / "export")
    assert torch.equal(logits(fedpeft.load(tmp_path / "export"), data), expected)
    other = fedpeft.simulate(tuned(method, seed=5), data, SETTINGS)
    assert not torch.equal(logits(other.model, data), expected)


def test_options_and_blocks_stand_in_the_folder(data, tmp_path):
    loaded = fedpeft.load_model(fedpeft.ModelRequest("vit-glyphs-8", num_labels=10))
    request = fedpeft.TuningRequest("lora", {"lora_alpha": 64}, blocks=(1, 1))
    fedpeft.simulate(fedpeft.tune(loaded, request), data, SETTINGS, out=tmp_path)
    tuning = read_toml(tmp_path / "experiment.toml")["tuning"]
    assert tuning["options"]["lora_alpha"] == 64 and tuning["blocks"] == [1, 1]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_finished_folder_gives_the_final_model_again(workers, data, tmp_path):
    settings = SETTINGS | {"engine.workers": workers}
    first, second = (
        fedpeft.simulate(tuned("head"), data, settings, out=tmp_path) for _ in range(2)
    )
    assert torch.equal(logits(first.model, data), logits(second.model, data))
    assert not torch.equal(logits(first.model, data), logits(tuned("head").model, data))


def test_what_a_folder_would_build_otherwise_is_refused(data, tmp_path):
    other_seed = tuned("head", name="preset:tiny-vit", seed=9)
    with pytest.raises(ConfigError, match=r"cannot be recorded .* simulation's, which is 1: set"):
        fedpeft.simulate(other_seed, data, SETTINGS, out=tmp_path / "a")
    changed = tuned("head")
    with torch.no_grad():
        next(p for p in changed.model.parameters() if not p.requires_grad).add_(1)
    with pytest.raises(ConfigError, match=r"frozen tensors \(.*\) differ: they were changed"):
        fedpeft.simulate(changed, data, SETTINGS, out=tmp_path / "a")
    assert not (tmp_path / "a").exists()
    assert len(fedpeft.simulate(changed, data, SETTINGS).records) == 1


def test_a_module_from_python_is_named_as_one(data, tmp_path):
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    task = fedpeft.classification_task(lambda net, batch: net(batch["pixel_values"]))
    loaded = fedpeft.wrap_module(net, task=task, head=["1"], name="vit-glyphs-8")
    own = fedpeft.tune(loaded, fedpeft.TuningRequest("head"))
    fedpeft.simulate(own, data, SETTINGS, out=tmp_path)
    with pytest.raises(ModelError, match=r"'object:vit-glyphs-8': the run trained a module"):
        fedpeft.load(tmp_path)
