"""Video from an experiment file to an exported model: every method that is offered for clips."""

from __future__ import annotations

import json
from pathlib import Path

import finished_runs
import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForVideoClassification

import fedpeft
from fedpeft.client.private import one_by_one, row_gradients
from fedpeft.experiment.experiment import Experiment
from fedpeft.experiment.read import read_experiment, validate
from fedpeft.experiment.resolve import resolve
from fedpeft.export.export import export_run
from fedpeft.launch.start import run
from fedpeft.models.quiet import quiet
from fedpeft.models.source import ModelRequest, load_model
from fedpeft.plan.plan import make_plan
from fedpeft.tuning.methods import METHODS, TuningRequest, tune
from motion import MotionSpec, make_motion

ROOT = Path(__file__).parents[2]
OFFERED = [name for name, method in METHODS.items() if "videomae" not in method.refused]
QUICK = ("full", "bias", "prompt", "lora")  # the others in the slow tier
WHOLE = ("scratch", "full", "head", "bias")
OPTIONS = {
    "c3a": {"block_size": 8},
    "fourierft": {"n_frequency": 10},
    "gralora": {"r": 4},
    "hira": {"r": 4},
    "lily": {"r": 4},
    "lora": {"r": 2},
    "miss": {"r": 4},
    "oft": {"oft_block_size": 4},
    "peanut": {"r": 4},
    "prompt": {"num_tokens": 2},
    "psoft": {"r": 4},
    "randlora": {"r": 4},
    "road": {"group_size": 16},
    "supertuning": {"sparsity": 0.9},
    "tinylora": {"u": 4},
    "unilora": {"theta_d_length": 16},
    "vblora": {"vector_length": 16, "num_vectors": 8},
    "vera": {"r": 4},
    "waveft": {"n_frequency": 10},
}


def methods(names):
    return [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in names]


@pytest.fixture(scope="module")
def clips():
    generator = torch.Generator().manual_seed(2)
    return torch.randn(3, 4, 1, 8, 8, generator=generator)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A file of 48 clips in splits."""
    file = tmp_path_factory.mktemp("clips") / "clips.npz"
    x, y = make_motion(MotionSpec(48, frames=5, side=8))
    np.savez(file, pixel_values_train=x[:32], labels_train=y[:32], pixel_values_test=x[32:],
             labels_test=y[32:])  # fmt: skip
    return file


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    module = load_model(ModelRequest("preset:tiny-videomae", num_labels=5)).module
    with quiet():
        module.save_pretrained(folder)
    return folder


def table(model, data, method):
    return {
        "model": {"name": str(model)},
        "tuning": {"method": method, "options": OPTIONS.get(method, {})},
        "data": {"source": str(data), "partition": {"scheme": "iid", "clients": 2}},
        "federation": {"rounds": 1, "clients_per_round": 2},
        "client": {"epochs": 1, "batch_size": 16, "lr": 0.01},
        "engine": {"workers": 1},
    }


def tuned_on(method, model="preset:tiny-videomae"):
    loaded = load_model(ModelRequest(str(model), num_labels=8))
    return tune(loaded, TuningRequest(method, OPTIONS.get(method, {}), seed=1))


@pytest.mark.parametrize("method", methods(OFFERED))
def test_method_trains_exports_and_loads(method, model, data, clips, tmp_path):
    summary = run(validate(table(model, data, method), "test"), tmp_path / "run")
    assert summary["rounds"] == 1 and 0 <= summary["accuracy"] <= 1
    folder = export_run(tmp_path / "run", tmp_path / "out")
    ours, again = fedpeft.load(tmp_path / "run"), fedpeft.load(folder)
    with torch.no_grad():
        expected = ours(pixel_values=clips).logits
        found = again(pixel_values=clips).logits
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    card = (folder / "README.md").read_text()
    assert "pipeline_tag: video-classification" in card and "pixel_values=x" in card


@pytest.mark.parametrize("method", ["full", "bias", "lora"])
def test_export_loads_with_stock_libraries(method, model, clips, tmp_path):
    chosen = experiment(model, method)
    run_ = finished_runs.write_finished(tmp_path / "run", chosen)
    folder = export_run(run_, tmp_path / "out")
    auto = AutoModelForVideoClassification
    with quiet(), torch.no_grad():
        theirs = auto.from_pretrained(folder if method in WHOLE else folder / "base")
        if method not in WHOLE:
            theirs = PeftModel.from_pretrained(theirs, folder)
        found = theirs.eval()(pixel_values=clips).logits
        expected = fedpeft.load(run_)(pixel_values=clips).logits
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    processor = json.loads((folder / "preprocessor_config.json").read_text())
    assert processor["image_processor_type"] == "VideoMAEImageProcessor"


def experiment(model, method):
    tables = {
        "model": {"name": str(model), "task": "video-classification", "num_labels": 3},
        "tuning": {"method": method, "options": OPTIONS.get(method, {})},
        "federation": {"rounds": 2, "clients_per_round": 2},
    }
    return resolve(Experiment.model_validate(tables)).experiment


@pytest.mark.parametrize(
    "method",
    methods([n for n in OFFERED if METHODS[n].vmaps and n != "trainable_tokens"]),
)
def test_rows_equal_one_by_one_gradients(method, clips):
    tuned = tuned_on(method)
    batch = {"pixel_values": clips, "labels": torch.tensor([0, 7, 3])}
    keys = torch.arange(3)
    expected, _ = one_by_one(tuned, batch, keys)
    found = row_gradients(tuned)(batch, keys)
    torch.testing.assert_close(found, expected, atol=1e-5 * float(expected.abs().max()), rtol=1e-4)
    assert not torch.allclose(found[0], found[1])


def test_merged_lora_equals_unmerged(clips):
    tuned = tuned_on("lora")
    with torch.no_grad():
        for parameter in tuned.parameters.values():
            parameter.add_(0.1)
        apart = tuned.model(pixel_values=clips).logits
        tuned.peft_model.merge_adapter()
        merged = tuned.model(pixel_values=clips).logits
        base = tuned_on("head").model(pixel_values=clips).logits
    torch.testing.assert_close(merged, apart, atol=1e-5, rtol=0)
    assert not torch.allclose(merged, base, atol=1e-3)


@pytest.mark.parametrize("deep", [True, False])
def test_prompts_are_cut_off_before_the_mean(deep, clips):
    loaded = load_model(ModelRequest("preset:tiny-videomae"))
    options = {"num_tokens": 3, "deep": deep}
    tuned = tune(loaded, TuningRequest("prompt", options, seed=1))
    tokens, video = tuned.parameters["prompt.tokens"], tuned.model.videomae
    x = video.embeddings(clips, None)
    for i, layer in enumerate(video.encoder.layer):
        if deep or i == 0:
            x = torch.cat((x, (tokens[i] if deep else tokens).expand(3, -1, -1)), 1)
        x = layer.forward(x)
        x = x[:, :8] if deep else x
    pooled = tuned.model.fc_norm(x[:, :8].mean(1))
    expected = tuned.model.classifier(pooled)
    torch.testing.assert_close(tuned.model(pixel_values=clips).logits, expected)


def test_adapter_stands_before_the_skip(clips):
    tuned = tuned_on("adapter")
    with torch.no_grad():
        tuned.parameters["adapter.up.bias"].fill_(0.5)
    block = tuned.model.videomae.encoder.layer[0]
    h, skip = torch.randn(1, 2, 32), torch.randn(1, 2, 16)
    plain = h @ block.output.dense.weight.T + block.output.dense.bias
    torch.testing.assert_close(block.output(h, skip), plain + 0.5 + skip)


@pytest.mark.slow  # the library computes its table of positions number by number
def test_videomae_base_is_planned_without_weights_or_network():
    files = {"model": {"name": "preset:videomae-base", "num_labels": 10}}
    found = make_plan(validate({**files, "tuning": {"method": "bias"}}, "test")).as_json()
    width, blocks = 768, 12
    biases = width + blocks * (2 * width + width + 4 * width + width + 2 * width) + width
    assert found["trainable_parameters"] == biases + 10 * width + 10
    assert found["trainable_payload_bytes"] == 4 * found["trainable_parameters"]


def test_example_file_is_valid_and_offline():
    found = resolve(read_experiment(ROOT / "examples" / "motion-videomae.toml")).experiment
    assert (found.model.name, found.data.source) == ("preset:tiny-videomae", "motion")
