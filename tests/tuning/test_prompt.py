"""Prompts: against the formula by hand, zero tokens, dropout by example, and errors."""

from __future__ import annotations

import math

import pytest
import torch

from fedpeft.core.deltas import digest_of
from fedpeft.core.errors import TuningError
from fedpeft.tuning.methods import TuningRequest, tune
from fedpeft.tuning.tuned import read_delta


@pytest.fixture
def images(batch_for):
    return batch_for("vit")["pixel_values"]


def by_hand(tuned, images, tokens_of):
    """Run the blocks with prompts put in and taken out by hand; `tokens_of(block)` may be None."""
    vit = tuned.model.vit
    hooks = [part._forward_hooks | part._forward_pre_hooks for part in vit.layers]
    assert any(hooks)
    x = vit.embeddings(images)
    for i, layer in enumerate(vit.layers):
        tokens = tokens_of(i)
        if tokens is not None:
            x = torch.cat((x, tokens.expand(len(images), -1, -1)), 1)
        x = layer.forward(x, None)
        if tokens is not None and tuned.options["deep"]:
            x = x[:, : -tokens.shape[0]]
    return tuned.model.classifier(vit.layernorm(x)[:, 0])


def test_deep_prompts_are_new_in_each_block(make, images):
    tuned = tune(make("vit"), TuningRequest("prompt", {"num_tokens": 3}))
    tokens = tuned.parameters["prompt.tokens"]
    assert tokens.shape == (2, 3, 32)
    expected = by_hand(tuned, images, lambda block: tokens[block])
    torch.testing.assert_close(tuned.model(pixel_values=images).logits, expected)


def test_shallow_prompts_pass_through_all_blocks(make, images):
    tuned = tune(make("vit"), TuningRequest("prompt", {"num_tokens": 3, "deep": False}))
    tokens = tuned.parameters["prompt.tokens"]
    assert tokens.shape == (3, 32)
    expected = by_hand(tuned, images, lambda block: tokens if block == 0 else None)
    torch.testing.assert_close(tuned.model(pixel_values=images).logits, expected)


def test_range_of_blocks_has_its_own_prompts(make, images):
    tuned = tune(make("vit"), TuningRequest("prompt", {"num_tokens": 3}, blocks=(1, 1)))
    tokens = tuned.parameters["prompt.tokens"]
    expected = by_hand(tuned, images, lambda block: tokens[0] if block == 1 else None)
    torch.testing.assert_close(tuned.model(pixel_values=images).logits, expected)


def test_no_tokens_is_head_tuning(make, images):
    prompt = tune(make("vit"), TuningRequest("prompt", {"num_tokens": 0}))
    head = tune(make("vit"), TuningRequest("head"))
    assert prompt.spec.digest == head.spec.digest
    assert digest_of(read_delta(prompt)) == digest_of(read_delta(head))
    same = prompt.model(pixel_values=images).logits == head.model(pixel_values=images).logits
    assert same.all()


def test_one_token_is_not_head_tuning(make):
    prompt = tune(make("vit"), TuningRequest("prompt", {"num_tokens": 1}))
    assert prompt.spec.digest != tune(make("vit"), TuningRequest("head")).spec.digest


def test_tokens_start_uniform_within_the_bound(make):
    tokens = tune(make("vit"), TuningRequest("prompt", {"num_tokens": 50})).parameters
    bound = math.sqrt(6 / (3 * 8 * 8 + 32))
    largest = tokens["prompt.tokens"].abs().max().item()
    assert 0.95 * bound < largest <= bound


def test_dropout_follows_the_example_not_the_batch(make, images):
    tuned = tune(make("vit"), TuningRequest("prompt", {"dropout": 0.5}))
    keys = torch.tensor([11, 22, 33, 44])
    with tuned.dropout.using(keys):
        together = tuned.model(pixel_values=images).logits
    with tuned.dropout.using(keys[2:]):
        apart = tuned.model(pixel_values=images[2:]).logits
    torch.testing.assert_close(together[2:], apart)
    with tuned.dropout.using(keys + 1):
        assert not torch.allclose(together, tuned.model(pixel_values=images).logits)


def test_layers_draw_different_masks(make):
    tuned = tune(make("vit"), TuningRequest("prompt"))
    salts = {layer.salt for layer in tuned.model.fedpeft_prompt.dropout}
    assert len(salts) == 2


@pytest.mark.parametrize("kind", ["bert", "llama", "plain"])
def test_other_models_are_pointed_elsewhere(make, kind):
    with pytest.raises(TuningError, match=r"not a known image transformer.*prompt_tuning or pref"):
        tune(make(kind), TuningRequest("prompt"))
