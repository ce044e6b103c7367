"""Fingerprints: equal for equal backbones, different after the smallest change."""

from __future__ import annotations

import pytest
import torch

from fedpeft.core.errors import ModelError
from fedpeft.models.families import PLAIN
from fedpeft.models.fingerprint import fingerprint
from fedpeft.models.source import ModelRequest, load_model, sketch_model

HEAD = ("head.weight", "head.bias")


def of(loaded, exclude=HEAD):
    return fingerprint(loaded.module, loaded.family, exclude=exclude)


@pytest.fixture
def loaded(vit_folder):
    return load_model(ModelRequest(str(vit_folder), num_labels=4, seed=1))


def test_folders_of_4_and_of_5_agree(loaded, old_vit_folder):
    other = load_model(ModelRequest(str(old_vit_folder), num_labels=4, seed=1))
    assert of(loaded) == of(other)
    assert len(of(loaded)) == 64


def test_what_is_excluded_does_not_count(loaded, vit_folder):
    other = load_model(ModelRequest(str(vit_folder), num_labels=9, seed=2))
    assert of(loaded) == of(other)
    assert of(loaded, ()) != of(other, ())


def test_one_bit_changes_it(loaded):
    before = of(loaded)
    weight = loaded.module.vit.layers[1].mlp.fc1.weight.detach()
    weight.view(torch.int32)[3, 5] ^= 1
    assert of(loaded) != before
    weight.view(torch.int32)[3, 5] ^= 1
    assert of(loaded) == before


def test_running_statistics_count():
    network = torch.nn.BatchNorm1d(3)
    before = fingerprint(network, PLAIN)
    network.running_mean[0] = 1
    assert fingerprint(network, PLAIN) != before


def test_names_and_shapes_count():
    layer = torch.nn.Linear(4, 2, bias=False)
    other = torch.nn.Linear(2, 4, bias=False)
    other.weight.data = layer.weight.data.reshape(4, 2)
    renamed = torch.nn.Sequential(layer)
    digests = {fingerprint(m, PLAIN) for m in (layer, other, renamed)}
    assert len(digests) == 3


def test_without_weights_there_is_none():
    sketch = sketch_model(ModelRequest("preset:tiny-vit"))
    with pytest.raises(ModelError, match="is on `meta` and has no values"):
        of(sketch)
