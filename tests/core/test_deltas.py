from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedpeft.core.deltas import DeltaSpec, digest_of
from fedpeft.core.errors import DeltaMismatchError

SHAPES = st.dictionaries(
    st.text("abc.", min_size=1, max_size=6),
    st.lists(st.integers(0, 4), max_size=3).map(tuple),
    max_size=5,
)


@settings(max_examples=50, deadline=None)
@given(SHAPES)
def test_unflatten_undoes_flatten(shapes):
    tensors = {name: torch.randn(shape) for name, shape in shapes.items()}
    spec = DeltaSpec.of(tensors)
    back = spec.unflatten(spec.flatten(tensors))
    assert list(back) == sorted(tensors)
    assert all(torch.equal(back[name], tensors[name]) for name in tensors)
    assert spec.num_bytes == 4 * sum(t.numel() for t in tensors.values())


def test_flatten_copies_and_unflatten_does_not():
    tensors = {"a": torch.zeros(2)}
    spec = DeltaSpec.of(tensors)
    flat = spec.flatten(tensors)
    flat += 1
    assert tensors["a"].sum() == 0
    spec.unflatten(flat)["a"].zero_()
    assert flat.sum() == 0


def test_digest_ignores_order_and_sees_names_shapes_and_type():
    a, b = torch.zeros(2), torch.zeros(3)
    digest = DeltaSpec.of({"a": a, "b": b}).digest
    assert digest == DeltaSpec.of({"b": b, "a": a}).digest
    others = [{"a": b, "b": a}, {"a": a, "c": b}, {"a": a.double(), "b": b.double()}]
    assert digest not in {DeltaSpec.of(other).digest for other in others}


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({}, "missing a"),
        ({"a": torch.zeros(3)}, r"a is float32\[3\], expected float32\[2\]"),
        ({"a": torch.zeros(2, dtype=torch.float64)}, "a is float64"),
        ({"a": torch.zeros(2), "b": torch.zeros(1)}, "unknown b"),
    ],
)
def test_flatten_refuses_what_does_not_fit(tensors, words):
    with pytest.raises(DeltaMismatchError, match=words):
        DeltaSpec.of({"a": torch.zeros(2)}).flatten(tensors)


def test_unflatten_refuses_a_wrong_length():
    with pytest.raises(DeltaMismatchError, match=r"found float32\[3\], expected float32\[2\]"):
        DeltaSpec.of({"a": torch.zeros(2)}).unflatten(torch.zeros(3))


def test_of_refuses_mixed_types():
    with pytest.raises(DeltaMismatchError, match="one floating type"):
        DeltaSpec.of({"a": torch.zeros(1), "b": torch.zeros(1, dtype=torch.float16)})


def test_digest_of_sees_one_bit():
    flat = torch.tensor([1.0, 2.0])
    other = flat.clone()
    other.view(torch.int32)[1] ^= 1
    assert digest_of(flat) == digest_of(flat.clone()) != digest_of(other)
