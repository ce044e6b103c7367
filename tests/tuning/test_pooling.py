"""Pooled models under every tuning method: what is read, what trains, what a plan counts."""

from __future__ import annotations

import copy

import peft
import pytest
import torch

from fedpeft.models.pooling import pooling_of
from fedpeft.models.quiet import quiet
from fedpeft.models.source import ModelRequest, load_model, sketch_model
from fedpeft.tuning.adopt import from_peft
from fedpeft.tuning.methods import METHODS, TuningRequest, tune
from fedpeft.tuning.tuned import TunedModel

OPTIONS = {"miss": {"r": 4}, "psoft": {"r": 4}, "road": {"group_size": 16},
           "vblora": {"vector_length": 16, "num_vectors": 8}, "c3a": {"block_size": 16},
           "fourierft": {"n_frequency": 16}, "waveft": {"n_frequency": 16},
           "trainable_tokens": {"token_indices": [5, 6]}}  # fmt: skip
NAMES = [name for name, method in METHODS.items() if "bert" not in method.refused]
MIXES = {"lily"}
"""The library averages its router over all tokens of a batch, pooled or not."""
VIRTUAL = ("p_tuning", "prefix_tuning", "prompt_tuning")
TOKENS = torch.tensor([[5, 6, 7, 8, 0, 0], [5, 9, 10, 11, 12, 13]])
MASK = (TOKENS != 0).long()


def request(pooling: str | None = "mean") -> ModelRequest:
    return ModelRequest("preset:tiny-bert", num_labels=3, pooling=pooling)


def tuned(method: str, pooling: str | None = "mean") -> TunedModel:
    model = tune(load_model(request(pooling)), TuningRequest(method, OPTIONS.get(method, {})))
    draw = torch.Generator().manual_seed(2)
    with torch.no_grad():  # untrained models hardly attend to anything, and deltas start from zero
        for parameter in model.model.parameters():
            if parameter.ndim > 1:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=draw))
    return model


def logits(model: TunedModel, rows: slice = slice(None), length: int = 6) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.model(
            input_ids=TOKENS[rows, :length], attention_mask=MASK[rows, :length]
        ).logits
    return found


@pytest.mark.parametrize("method", NAMES)
def test_every_method_pools_the_same_tokens_and_has_no_pooler(method):
    model = tuned(method)
    assert pooling_of(model.loaded.module) == "mean"
    if method not in MIXES:
        alone = logits(model, slice(0, 1), 4)
        torch.testing.assert_close(logits(model)[:1], alone, atol=1e-4, rtol=1e-3)
    assert not [name for name in model.spec.names if "pooler" in name]
    planned = tune(sketch_model(request()), TuningRequest(method, OPTIONS.get(method, {})))
    assert planned.spec == model.spec and planned.buffer_spec == model.buffer_spec
    assert sum(p.numel() for p in planned.model.parameters()) == sum(
        p.numel() for p in model.model.parameters()
    )
    torch.testing.assert_close(logits(copy.deepcopy(model)), logits(model))


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("method", VIRTUAL)
def test_virtual_tokens_are_not_pooled(method, pooling):
    model = tuned(method, pooling)
    module, caught = model.loaded.module, []
    module.base_model.register_forward_hook(
        lambda part, args, output: caught.append(output.last_hidden_state), prepend=True
    )
    found = logits(model, slice(0, 1), 4)[0]
    states_TD = caught[0][0]
    virtual = len(states_TD) - 4
    assert virtual == (0 if method == "prefix_tuning" else model.options["num_virtual_tokens"])
    own_TD = states_TD[virtual:]
    with torch.no_grad():
        expected = module.classifier(own_TD.mean(0) if pooling == "mean" else own_TD[0])
        wrong = module.classifier(states_TD.mean(0) if pooling == "mean" else states_TD[0])
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert not virtual or (found - wrong).abs().max() > 1e-3, "virtual tokens would be seen"


def test_without_pooling_the_class_decides():
    """The negative control: BERT reads the first virtual token, and methods train its pooler."""
    model = tuned("prompt_tuning", None)
    assert not model.loaded.module.base_model._forward_hooks
    assert "pooler.weight" in tuned("full", None).spec.names


def test_a_model_that_peft_wrapped_keeps_its_pooling():
    module = load_model(request()).module
    config = peft.LoraConfig(r=2, target_modules=["query"], modules_to_save=["classifier"])
    with quiet():
        wrapped = peft.get_peft_model(module, config).eval()
    model = from_peft(wrapped, base="preset:tiny-bert")
    assert model.loaded.recorded["model.pooling"] == "mean"
    with torch.no_grad():
        expected = wrapped(input_ids=TOKENS, attention_mask=MASK).logits
    torch.testing.assert_close(logits(model), expected)
