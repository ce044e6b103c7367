"""Bias tuning: its parameters, ranges of blocks, and models without any bias."""

from __future__ import annotations

import pytest
import torch

from fedpeft.core.errors import TuningError
from fedpeft.models.families import block_of
from fedpeft.tuning.methods import TuningRequest, tune


def test_every_bias_and_the_head_train(make):
    tuned = tune(make("vit"), TuningRequest("bias"))
    biases = {name for name in tuned.spec.names if name.endswith(".bias")}
    assert set(tuned.spec.names) - biases == {"head.weight"}
    assert {"patch.bias", "norm.bias", "blocks.1.attn.k.bias", "blocks.0.norm1.bias"} <= biases


def test_range_of_blocks_keeps_other_biases_frozen(make):
    names = tune(make("vit"), TuningRequest("bias", blocks=(1, 1))).spec.names
    assert {block_of(name) for name in names if not name.startswith("head")} == {1}
    assert {"head.bias", "head.weight"} <= set(names)


def test_model_without_bias_is_pointed_to_the_option(make):
    with pytest.raises(TuningError, match=r"tiny-llama has no bias.*`add_missing = true`"):
        tune(make("llama"), TuningRequest("bias"))


def test_added_biases_are_zero_and_change_nothing(make, batch_for):
    tokens = batch_for("llama")["input_ids"]
    expected = make("llama").module(tokens).logits
    tuned = tune(make("llama"), TuningRequest("bias", {"add_missing": True}))
    assert torch.equal(tuned.model(tokens).logits, expected)
    assert len(tuned.spec.names) == 2 * 7
    assert "head.weight" not in tuned.spec.names


def test_added_biases_survive_a_stock_save(make, batch_for, tmp_path):
    from transformers import LlamaForCausalLM

    tokens = batch_for("llama")["input_ids"]
    tuned = tune(make("llama"), TuningRequest("bias", {"add_missing": True}))
    with torch.no_grad():
        for parameter in tuned.parameters.values():
            parameter.add_(0.1)
    tuned.model.save_pretrained(tmp_path)
    loaded = LlamaForCausalLM.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(loaded(tokens).logits, tuned.model(tokens).logits)


def test_added_biases_follow_the_range(make):
    request = TuningRequest("bias", {"add_missing": True}, blocks=(0, 0))
    assert {block_of(name) for name in tune(make("llama"), request).spec.names} == {0}
