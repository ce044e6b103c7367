"""Keyed dropout: the mask depends on key and layer, and the rate is correct."""

from __future__ import annotations

import pytest
import torch

from fedpeft.tuning.dropout import DropoutKeys, KeyedDropout

KEYS = torch.arange(100, 164)


def dropped(layer, x, keys=KEYS):
    with layer.keys.using(keys):
        return layer(x)


def test_rate_and_scale_are_right():
    out = dropped(KeyedDropout(0.25, DropoutKeys(), "a"), torch.ones(64, 500))
    assert abs((out == 0).float().mean().item() - 0.25) < 0.01
    assert set(out.unique().tolist()) == {0.0, torch.tensor(1 / 0.75).item()}


def test_mask_follows_the_example_through_any_batch():
    layer, x = KeyedDropout(0.5, DropoutKeys(), "a"), torch.ones(64, 3, 7)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(dropped(layer, x, KEYS[order]), dropped(layer, x)[order])


@pytest.mark.parametrize(("place", "shift"), [("b", 0), ("a", 1)])
def test_another_place_or_key_gives_another_mask(place, shift):
    keys, x = DropoutKeys(), torch.ones(64, 50)
    one = dropped(KeyedDropout(0.5, keys, "a"), x)
    assert not torch.equal(one, dropped(KeyedDropout(0.5, keys, place), x, KEYS + shift))


@pytest.mark.parametrize("p", [0.0, 0.5])
def test_nothing_is_dropped_without_keys_or_rate(p):
    layer, x = KeyedDropout(p, DropoutKeys(), "a"), torch.ones(64, 5)
    assert torch.equal(layer(x) if p else dropped(layer, x), x)
    assert repr(layer) == f"KeyedDropout(p={p})"


def test_keys_are_gone_after_the_block_also_after_an_error():
    keys = DropoutKeys()
    with pytest.raises(KeyError), keys.using(KEYS):
        raise KeyError
    assert keys.keys_B is None
