"""What a simulation's folder says of the model: what was used is what is recorded."""

from __future__ import annotations

import copy
import dataclasses

import peft
import pytest
import torch
from torch import nn

import fedpeft
from fedpeft.build.model import data_request
from fedpeft.core.deltas import digest_of
from fedpeft.core.errors import ConfigError, DataError, ModelError
from fedpeft.experiment.read import read_experiment, read_toml
from fedpeft.experiment.resolve import Resolved
from fedpeft.export.export import export_run
from fedpeft.tuning.tuned import read_delta, write_delta

SETTINGS = {
    "federation.rounds": 1,
    "federation.clients_per_round": 2,
    "client.epochs": 1,
    "client.lr": 0.05,
    "engine.workers": 1,
}


def loaded_inputs():
    return fedpeft.load_model(fedpeft.ModelRequest("vit-glyphs-8")).inputs


@pytest.fixture(scope="module")
def data():
    clients = fedpeft.PartitionRequest(clients=4, min_examples=1)
    return fedpeft.load_data(fedpeft.DataRequest(budget=60, partition=clients), loaded_inputs())


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
    ("lora", {"r": 2, "target_modules": ("q_proj", "fc1"), "rank_pattern": {"fc1": 3}}),
    pytest.param("vera", {"r": 4}, marks=pytest.mark.slow),
    pytest.param("adapter", {"reduction": 4}, marks=pytest.mark.slow),
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


def test_data_stand_in_the_folder_as_they_were_loaded(data, tmp_path):
    fedpeft.simulate(tuned("head"), data, SETTINGS, out=tmp_path / "a")
    found = read_experiment(tmp_path / "a/experiment.toml")
    assert data_request(Resolved(found), "image-classification") == data.request
    assert (found.data.budget, found.data.partition.min_examples) == (60, 1)
    fedpeft.simulate(tuned("head"), data, {**SETTINGS, "seed": 2}, out=tmp_path / "b")
    source = read_experiment(tmp_path / "b/experiment.toml").data.source
    assert source == "object:digits"  # the data were drawn from seed 1
    with pytest.raises(DataError, match=r"'object:digits': the run trained on data that were"):
        fedpeft.load_data(fedpeft.DataRequest(source), loaded_inputs())


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


LORA = {"target_modules": ["q_proj"], "lora_alpha": 32, "r": 2}


def wrapped(**config):
    """A model as a user wraps it."""
    module = fedpeft.load_model(fedpeft.ModelRequest("vit-glyphs-8", num_labels=10)).module
    fields = {**LORA, "modules_to_save": ["classifier"], **config}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return peft.get_peft_model(module, peft.LoraConfig(**fields))


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_an_adopted_model_trains_as_one_tuned_by_us(data, tmp_path):
    adopted = fedpeft.from_peft(wrapped(), base="vit-glyphs-8")
    ours, other = copied(LORA), copied({**LORA, "lora_alpha": 8})
    for model in (ours, other):
        write_delta(model, read_delta(adopted))
    assert ours.spec.digest == adopted.spec.digest
    result = fedpeft.simulate(adopted, data, SETTINGS, out=tmp_path / "run")
    digests = {
        name: _digest(fedpeft.simulate(m, data, SETTINGS).tuned)
        for name, m in (("ours", ours), ("other", other))
    }
    assert digests["ours"] == _digest(result.tuned) != digests["other"]
    export_run(tmp_path / "run", tmp_path / "export")
    for folder in ("run", "export"):
        found = logits(fedpeft.load(tmp_path / folder), data)
        assert torch.equal(found, logits(result.model, data))


def copied(options):
    """Tuned by us, in memory aligned as a copy's is: kernels round by it."""
    loaded = fedpeft.load_model(fedpeft.ModelRequest("vit-glyphs-8", num_labels=10))
    loaded = dataclasses.replace(loaded, module=copy.deepcopy(loaded.module))
    return fedpeft.tune(loaded, fedpeft.TuningRequest("lora", options))


def _digest(model):
    return digest_of(read_delta(model))


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
@pytest.mark.parametrize(
    ("config", "base", "message"),
    [
        ({}, "", r"its base has no name to load it by: pass base="),
        (
            {"modules_to_save": None},
            "vit-glyphs-8",
            r"would train \(head\.bias, head\.weight\)",
        ),
        ({}, "no-such-model", r"cannot be recorded .*'no-such-model': unknown"),
    ],
)
def test_an_adopted_model_that_no_file_can_describe_runs_in_memory(
    config, base, message, data, tmp_path
):
    model = wrapped(**config)
    if not base:
        model.peft_config["default"].base_model_name_or_path = None
        model.get_base_model().name_or_path = ""
    adopted = fedpeft.from_peft(model, base=base)
    with pytest.raises(ConfigError, match=message):
        fedpeft.simulate(adopted, data, SETTINGS, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert len(fedpeft.simulate(adopted, data, SETTINGS).records) == 1
