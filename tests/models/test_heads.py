"""New heads: their distribution, and that they depend on the seed alone."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from fedpeft.core.errors import ModelError
from fedpeft.models.heads import init_head


def model(width: int = 256, classes: int = 200) -> nn.ModuleDict:
    head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, classes))
    return nn.ModuleDict({"body": nn.Linear(width, width), "head": head})


def test_normal_has_the_stated_moments():
    parts = model()
    init_head(parts, ["head"], seed=1)
    layer = parts["head"][1]
    assert layer.weight.std().item() == pytest.approx(0.02, rel=0.01)
    assert layer.weight.mean().item() == pytest.approx(0, abs=3e-4)
    assert layer.bias.abs().max() == 0


def test_paper_is_uniform_with_bias():
    parts = model()
    init_head(parts, ["head"], seed=1, how="paper")
    layer, bound = parts["head"][1], 1 / math.sqrt(256)
    assert layer.weight.abs().max() <= bound
    assert layer.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.01)
    assert layer.bias.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.1)


@pytest.mark.parametrize("how", ["normal", "paper"])
def test_the_seed_alone_decides(how):
    first, second, other = model(), model(), model()
    init_head(first, ["head"], seed=1, how=how)
    torch.rand(3)
    init_head(second, ["head"], seed=1, how=how)
    init_head(other, ["head"], seed=2, how=how)
    assert torch.equal(first["head"][1].weight, second["head"][1].weight)
    assert not torch.equal(first["head"][1].weight, other["head"][1].weight)


def test_the_body_and_the_global_generator_are_left_alone():
    parts = model()
    before, state = parts["body"].weight.clone(), torch.get_rng_state()
    init_head(parts, ["head"], seed=1)
    assert torch.equal(parts["body"].weight, before)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_layer_without_bias_is_fine():
    parts = nn.ModuleDict({"score": nn.Linear(4, 2, bias=False)})
    init_head(parts, ["score"], seed=1, how="paper")
    assert parts["score"].weight.abs().max() <= 0.5


def test_meta_stays_meta():
    with torch.device("meta"):
        parts = model()
    init_head(parts, ["head"], seed=1)
    assert parts["head"][1].weight.is_meta


def test_an_unknown_initialisation_is_an_error():
    with pytest.raises(ModelError, match="head_init 'zeros': unknown; choose one of normal, paper"):
        init_head(model(), ["head"], seed=1, how="zeros")
