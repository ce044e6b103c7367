"""scratch, full and head: weights from the seed, travelling statistics, tied heads."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fedpeft.core.errors import TuningError
from fedpeft.models.families import PLAIN, block_of
from fedpeft.models.loaded import LoadedModel
from fedpeft.models.tasks import IMAGE_CLASSIFICATION
from fedpeft.tuning.methods import TuningRequest, tune
from fedpeft.tuning.tuned import read_buffers, read_delta, write_buffers


@pytest.mark.parametrize("kind", ["vit", "bert", "llama", "plain", "normed"])
def test_scratch_forgets_the_pretrained_weights(make, kind):
    one = tune(make(kind, seed=0), TuningRequest("scratch", seed=5))
    other = tune(make(kind, seed=9), TuningRequest("scratch", seed=5))
    for name, parameter in one.parameters.items():
        if not name.startswith(("head", "top", "pooler")):
            assert torch.equal(parameter, other.parameters[name]), name


def test_scratch_differs_from_full_but_for_the_head(make):
    scratch = tune(make("vit"), TuningRequest("scratch", seed=5)).parameters
    full = tune(make("vit"), TuningRequest("full", seed=5)).parameters
    same = {name for name in full if torch.equal(full[name], scratch[name])}
    assert {"head.weight", "head.bias"} <= same
    assert "blocks.0.attn.q.weight" not in same and "positions" not in same


def test_scratch_forgets_a_pretrained_language_head(make):
    before = make("llama").module.lm_head.weight
    tuned = tune(make("llama"), TuningRequest("scratch", seed=5))
    assert not torch.equal(tuned.parameters["head.weight"], before)


def test_scratch_needs_a_way_to_initialise(make):
    module = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    module.register_parameter("scale", nn.Parameter(torch.ones(())))
    loaded = LoadedModel(module, IMAGE_CLASSIFICATION, PLAIN, ("1",), None, "own")
    with pytest.raises(TuningError, match=r"the root.*Sequential.*no `reset_parameters"):
        tune(loaded, TuningRequest("scratch"))


def test_statistics_travel_with_full_only(make):
    tuned = tune(make("normed"), TuningRequest("full"))
    assert tuned.buffer_spec.names == ("bn.running_mean", "bn.running_var")
    assert tuned.trains_statistics and not tuned.model.training
    write_buffers(tuned, torch.arange(8.0))
    assert torch.equal(tuned.model.bn.running_var, torch.arange(4.0, 8.0))
    bias = tune(make("normed"), TuningRequest("bias"))
    assert not bias.trains_statistics and read_buffers(bias).numel() == 0


def test_buffers_from_the_config_stay_at_home(make):
    assert tune(make("llama"), TuningRequest("full")).buffer_spec.names == ()


def test_full_in_a_range_trains_those_blocks_and_the_head(make):
    tuned = tune(make("vit"), TuningRequest("full", blocks=(1, 1)))
    assert {block_of(n) for n in tuned.spec.names} == {1, None}
    assert {n for n in tuned.spec.names if block_of(n) is None} == {"head.bias", "head.weight"}
    assert not tuned.trains_statistics


def test_head_of_a_language_model_is_untied(make, batch_for):
    tokens = batch_for("llama")["input_ids"]
    tied = make("llama", tie_word_embeddings=True)
    expected = tied.module(tokens).logits
    embeddings = tied.module.model.embed_tokens.weight.detach().clone()
    tuned = tune(tied, TuningRequest("head"))
    assert tuned.spec.names == ("head.weight",)
    assert torch.equal(tuned.model(tokens).logits, expected)
    with torch.no_grad():
        tuned.parameters["head.weight"].add_(1.0)
    assert torch.equal(tuned.model.model.embed_tokens.weight, embeddings)


def test_untied_head_survives_a_stock_save(make, batch_for, tmp_path):
    from transformers import LlamaForCausalLM

    tokens = batch_for("llama")["input_ids"]
    tuned = tune(make("llama", tie_word_embeddings=True), TuningRequest("head"))
    with torch.no_grad():
        tuned.parameters["head.weight"].add_(torch.linspace(0, 1, 32))
    tuned.model.save_pretrained(tmp_path)
    loaded = LlamaForCausalLM.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(loaded(tokens).logits, tuned.model(tokens).logits)


def test_tied_tensor_is_in_the_delta_once(make):
    tuned = tune(make("llama", tie_word_embeddings=True), TuningRequest("full"))
    assert "tokens.weight" in tuned.spec.names and "head.weight" not in tuned.spec.names


def test_head_that_nobody_named_is_an_error(make):
    loaded = make("plain")
    nameless = LoadedModel(loaded.module, loaded.task, PLAIN, (), None, "own")
    with pytest.raises(TuningError, match=r"own has no known head.*its modules are ..first., .no"):
        tune(nameless, TuningRequest("head"))


@pytest.mark.parametrize("method", ["head", "scratch"])
def test_methods_without_blocks_refuse_a_range(make, method):
    with pytest.raises(TuningError, match=f"method {method} takes no range of blocks"):
        tune(make("vit"), TuningRequest(method, blocks=(0, 0)))


def test_delta_is_a_copy(make):
    tuned = tune(make("vit"), TuningRequest("head"))
    read_delta(tuned).zero_()
    assert read_delta(tuned).any()
