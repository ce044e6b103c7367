"""Weights in fewer bits: the same numbers as in float32 where they fit, and fewer bytes."""

from __future__ import annotations

import copy
import dataclasses
import sys

import numpy as np
import pytest
import safetensors.torch
import torch
from tiny_models import text_folder

from fedpeft.client.passes.many import many_trainer, why_one_by_one
from fedpeft.client.private import row_gradients
from fedpeft.client.settings import LocalSettings
from fedpeft.client.turns import DELTA, ClientTurn
from fedpeft.core.errors import ConfigError, ModelError, TuningError
from fedpeft.data.examples import ClientData
from fedpeft.data.tensors import TextExamples, flat_tokens
from fedpeft.models.fingerprint import fingerprint
from fedpeft.models.source import ModelRequest, load_model, sketch_model
from fedpeft.models.storage import storage_of
from fedpeft.models.stored import num_bytes, num_weights, settle, unstore
from fedpeft.tuning.methods import TuningRequest, tune
from fedpeft.tuning.tuned import read_delta

TASKS = {"bert": "text-classification", "gpt2": "causal-lm", "llama": "causal-lm"}


@pytest.fixture(scope="module", params=list(TASKS))
def half(request, tmp_path_factory):
    """A folder of weights in bfloat16, and its kind."""
    folder = tmp_path_factory.mktemp("half") / request.param
    config = {"initializer_range": 0.3, "tie_word_embeddings": request.param != "bert"}
    text_folder(folder, request.param, config, {"pad_token": "<pad>"})
    file = folder / "model.safetensors"
    tensors = {n: v.bfloat16() for n, v in safetensors.torch.load_file(file).items()}
    safetensors.torch.save_file(tensors, file, {"format": "pt"})
    return folder, request.param


def tuned(half, method="bias", **keys):
    folder, kind = half
    labels = 2 if TASKS[kind] == "text-classification" else None
    loaded = load_model(ModelRequest(str(folder), TASKS[kind], labels, **keys))
    options = {"add_missing": True} if (kind, method) == ("llama", "bias") else {}
    return tune(loaded, TuningRequest(method, options, seed=1))


def turns(kind):
    draw = np.random.default_rng(0)
    rows = [draw.integers(3, 24, size).tolist() for size in draw.integers(4, 12, 12)]
    labels = torch.arange(12) % 2 if TASKS[kind] == "text-classification" else None
    data = TextExamples(*flat_tokens(rows), labels, 0)
    parts = np.split(np.arange(12), [7])
    return [ClientTurn(1, str(i), ClientData(data, part), {}, i, 0) for i, part in enumerate(parts)]


def train(model, kind, together=1):
    chosen = LocalSettings(epochs=1, batch_size=4)
    assert together == 1 or why_one_by_one(model, chosen) == ""
    trainer = many_trainer(model, chosen, clients_per_pass=together)
    start = {DELTA: read_delta(model) + 0.1}
    return torch.stack([result.payload[DELTA] for result in trainer(start, turns(kind))])


@pytest.mark.parametrize("method", ["bias", "lora"])
def test_a_half_checkpoint_gives_the_same_numbers_in_half_the_bytes(half, method):
    whole, stored = tuned(half, method), tuned(half, method, dtype="auto")
    layers = sum(p.numel() for p in whole.model.parameters() if p.ndim > 1 and not p.requires_grad)
    assert num_bytes(whole.model) - num_bytes(stored.model) > 1.7 * layers
    assert num_weights(stored.model) == num_weights(whole.model)
    expected, found = train(whole, half[1]), train(stored, half[1])
    assert (expected - found).norm() < 1e-5 * expected.norm()


def test_clients_share_a_pass_over_stored_weights(half):
    one, many = (train(tuned(half, "bias", dtype="auto"), half[1], n) for n in (1, 2))
    assert (one - many).norm() < 1e-5 * one.norm()


def test_single_examples_have_gradients_over_stored_weights(half):
    whole, stored = tuned(half, "bias"), tuned(half, "bias", dtype="auto")
    batch = turns(half[1])[0].data.examples.batch(range(3), seed=None)
    keys = torch.arange(3)
    torch.testing.assert_close(
        row_gradients(stored)(batch, keys), row_gradients(whole)(batch, keys)
    )


def test_a_whole_checkpoint_stored_in_half_precision_is_rounded_first(tmp_path):
    folder = text_folder(tmp_path, "gpt2", {"initializer_range": 0.3}, {"pad_token": "<pad>"})
    stored, exact = (tuned((folder, "gpt2"), dtype=d) for d in ("bfloat16", "float32"))
    rounded = tuned((folder, "gpt2"))
    for parameter in rounded.model.parameters():
        if parameter.ndim > 1 and not parameter.requires_grad:
            parameter.data = parameter.data.bfloat16().float()
    found, expected, other = (train(model, "gpt2") for model in (stored, rounded, exact))
    assert (found - expected).norm() < 1e-5 * expected.norm() < (found - other).norm()
    assert stored.parameters and all(p.dtype is torch.float32 for p in stored.parameters.values())


def test_weights_come_back_and_a_copy_is_whole(half):
    model = tuned(half, "lora", dtype="bfloat16")
    batch = turns(half[1])[0].data.examples.batch(range(3), seed=None)
    copied = copy.deepcopy(model.model)
    score = model.loaded.task.score
    with torch.no_grad(), model.dropout.using(torch.arange(3)):
        before = score(model.model, batch).loss_B
        unstore(model.model)
        assert all(p.dtype is torch.float32 for p in model.model.parameters())
        assert torch.equal(before, score(model.model, batch).loss_B)
        assert torch.equal(before, score(copied, batch).loss_B)


def test_a_sketch_counts_the_same(half):
    folder, kind = half
    request = ModelRequest(str(folder), TASKS[kind], 2 if kind == "bert" else None, dtype="auto")
    sketch = tune(sketch_model(request), TuningRequest("lora", seed=1))
    model = tune(load_model(request), TuningRequest("lora", seed=1))
    assert num_weights(sketch.model) == num_weights(model.model)
    assert num_bytes(sketch.model) == num_bytes(model.model)


def test_the_fingerprint_tells_storages_apart(half):
    def found(**keys):
        model = tuned(half, "lora", **keys)
        return fingerprint(model.model, model.loaded.family, exclude=set(model.spec.names))

    assert found() != found(dtype="bfloat16") == found(dtype="auto")


@pytest.mark.parametrize("method", ["full", "dora", "oft", "scratch"])
def test_methods_that_need_the_weights_are_refused(half, method):
    with pytest.raises(TuningError, match=rf"'bfloat16' and 'none' with .*method = '{method}'"):
        tuned(half, method, dtype="bfloat16")


def test_files_decide_what_auto_means():
    assert storage_of("auto", "none", {"F32": 3, "BF16": 9}).dtype is torch.bfloat16
    assert storage_of("auto", "none", {"F16": 9}).dtype is torch.float16
    assert storage_of("auto", "none", {"F32": 9, "BF16": 3}).dtype is torch.float32
    assert storage_of("auto", "none", {}).plain
    with pytest.raises(ModelError, match=r"model.dtype: found 'half', allowed are auto, float32"):
        storage_of("half", "none", {})
    with pytest.raises(ModelError, match=r"model.quantization: found 'nf3', allowed are none"):
        storage_of("auto", "nf3", {})


def test_quantisation_without_its_package_is_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    loaded = load_model(ModelRequest("preset:tiny-llama", quantization="nf4"))
    with pytest.raises(ConfigError, match=r"quantization = 'nf4' needs the package bitsandbytes"):
        tune(loaded, TuningRequest("lora", seed=1))


@pytest.mark.parametrize(("name", "bound"), [("int8", 0.0065), ("nf4", 0.12)])
class TestQuantised:
    @pytest.fixture(autouse=True)
    def package(self):
        pytest.importorskip("bitsandbytes", reason="the extra `quantized` is not installed")

    def test_weights_are_near(self, half, name, bound):
        whole, packed = (tuned(half, "lora", quantization=q) for q in ("none", name))
        assert num_bytes(packed.model) < num_bytes(whole.model)
        unstore(packed.model)
        pairs = zip(whole.model.parameters(), packed.model.parameters(), strict=True)
        errors = [(a - b).norm() / a.norm() for a, b in pairs if a.ndim > 1 and a.norm() > 0]
        assert 0.6 * bound < max(errors) < bound

    def test_training_equals_that_of_the_weights_unpacked(self, half, name, bound):
        whole, packed = tuned(half, "lora"), tuned(half, "lora", quantization=name)
        assert num_weights(packed.model) == num_weights(whole.model)
        expected, found = train(whole, half[1]), train(packed, half[1])
        assert (expected - found).norm() > 0.3 * bound * expected.norm()
        folder, kind = half
        loaded = load_model(ModelRequest(str(folder), TASKS[kind], 2 if kind == "bert" else None,
                                         quantization=name))  # fmt: skip
        settle(loaded.module, loaded.storage, loaded.head)
        settled = tune(dataclasses.replace(loaded, storage=whole.loaded.storage),
                       TuningRequest("lora", seed=1))  # fmt: skip
        torch.testing.assert_close(train(settled, kind), found, rtol=1e-4, atol=1e-6)

    def test_clients_share_a_pass(self, half, name, bound):
        one, many = (train(tuned(half, "bias", quantization=name), half[1], n) for n in (1, 2))
        assert (one - many).norm() < 1e-5 * one.norm()

    def test_the_fingerprint_covers_codes_and_scales(self, half, name, bound):
        model = tuned(half, "lora", quantization=name)
        packed = [part for part in model.model.modules() if hasattr(part, "read")]
        part = next(part for part in packed if part.weight_scale is not None)
        prints = set()
        for change in ("none", "weight", "weight_scale"):
            if change != "none":
                getattr(part, change).view(-1)[0] += 1
            prints.add(fingerprint(model.model, model.loaded.family))
        assert len(prints) == 3

    def test_a_sketch_counts_the_same(self, half, name, bound):
        folder, kind = half
        request = ModelRequest(str(folder), TASKS[kind], 2 if kind == "bert" else None,
                               dtype="bfloat16", quantization=name)  # fmt: skip
        sketch = tune(sketch_model(request), TuningRequest("lora", seed=1))
        model = tune(load_model(request), TuningRequest("lora", seed=1))
        assert num_bytes(sketch.model) == num_bytes(model.model)
        assert num_weights(sketch.model) == num_weights(model.model)
