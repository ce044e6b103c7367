from __future__ import annotations

import pickle

import pytest
import torch
from torch import nn

from fedpeft.models.bypass import Rest, apart, entry_of, skippable, without
from fedpeft.models.families import FAMILIES, PLAIN, family_of
from fedpeft.models.presets import PRESETS
from fedpeft.models.source import ModelRequest, load_model


def vit():
    return load_model(ModelRequest("preset:tiny-vit", num_labels=10)).module


def test_an_exchanged_part_leaves_the_original_as_it_was():
    model = vit()
    x = torch.randn(3, 1, 8, 8)
    before = model(pixel_values=x).logits
    changed = without(model, {"vit.layers.0.mlp": nn.Identity(), "classifier": nn.Identity()})
    assert changed(pixel_values=x).logits.shape == (3, 16)
    assert torch.equal(model(pixel_values=x).logits, before)
    assert changed.get_submodule("vit.layers.1") is model.get_submodule("vit.layers.1")
    assert changed.get_submodule("vit.layers.0") is not model.get_submodule("vit.layers.0")


def test_all_parameters_stay_the_same_objects():
    model = vit()
    rest = Rest(model, family_of(model), ["vit.layers.0"], ["vit.layers.1"], [16])
    ours = {id(p) for p in rest.parameters()}
    assert {id(p) for p in model.parameters()} == ours


def test_shells_do_not_see_what_is_done_to_the_original():
    model = vit()
    own = apart(model, ["vit.layers.1"])
    x = torch.randn(3, 1, 8, 8)
    before = own(pixel_values=x).logits
    model.get_submodule("vit.layers.1").forward = lambda x, *_, **__: 0 * x
    assert torch.equal(own(pixel_values=x).logits, before)
    assert not torch.equal(model(pixel_values=x).logits, before)


def test_the_rest_of_a_model_can_be_pickled():
    model = vit()
    rest = Rest(model, family_of(model), ["vit.layers.0"], ["vit.layers.1"], [16]).eval()
    features = torch.randn(2, 5, 16)
    again = pickle.loads(pickle.dumps(rest))
    assert torch.equal(again(features).logits, rest(features).logits)


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_every_family_has_an_entry(name):
    assert entry_of(FAMILIES[name])
    assert entry_of(PLAIN) is None


@pytest.mark.parametrize("preset", [name for name in PRESETS if name.startswith("tiny")])
def test_entries_and_blocks_are_modules_of_the_model(preset):
    model = load_model(ModelRequest(f"preset:{preset}", num_labels=3)).module
    paths = {path for path, _ in model.named_modules()}
    entry = entry_of(family_of(model))
    assert {entry, *skippable(model, family_of(model))} <= paths
