"""Weights are bounded by what clients announced, and by a share of the round's mean."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpeft.core.errors import DeltaMismatchError
from fedpeft.server.weights import Weights, capped

WEIGHTS = st.lists(st.floats(1e-3, 1e9), min_size=1, max_size=12)


@given(WEIGHTS, st.floats(0.01, 0.999))
def test_no_client_has_more_than_its_share(weights, share):
    found, least = capped(weights, share), max(share, 1 / len(weights))
    assert max(found) <= least * sum(found) * (1 + 1e-9)
    by_weight = [after for _, after in sorted(zip(weights, found, strict=True))]
    assert by_weight == sorted(found), "the order of weights stays"


@given(WEIGHTS)
def test_weights_within_the_share_stay(weights):
    largest = max(weights) / sum(weights)
    assert capped(weights, 1.0) == weights
    if largest < 0.999:
        assert capped(weights, min(1.0, largest * 1.001)) == pytest.approx(weights)


def test_a_share_below_one_nth_makes_weights_equal():
    assert capped([1.0, 5.0, 100.0], 1 / 3) == [1.0, 1.0, 1.0] == capped([1.0, 5.0, 100.0], 0.1)
    assert capped([7.0], 0.5) == [1.0] and capped([], 0.5) == []


def test_the_largest_are_lowered_to_one_value():
    """The closed form: 0.4 (2 t + 20) = t is t = 40."""
    assert capped([1e6, 300.0, 20.0], 0.4) == pytest.approx([40.0, 40.0, 20.0])


@pytest.mark.parametrize(("bounds", "claimed", "words"), [
    (Weights({"a": 492}), 1e18, "at most 492 .the number of examples that it announced"),
    (Weights({"a": 492}), 493, "at most 492"),
    (Weights({"b": 9}), 2, "it announced no number"),
    (Weights({"a": 492}, constant=True), 2, "every weight is 1"),
    (Weights(), 1e300, "a finite number above 0"),
    (Weights(), 0, "above 0"),
    (Weights(), float("nan"), "weight is nan"),
])  # fmt: skip
def test_a_weight_over_its_bound_is_refused(bounds, claimed, words):
    with pytest.raises(DeltaMismatchError, match=words):
        bounds.of("a", claimed)


def test_a_weight_within_its_bound_counts_as_it_is():
    assert Weights({"a": 492}).of("a", 492) == 492 and Weights({"a": 492}).of("a", 3) == 3
    assert Weights({"a": 492}, constant=True).of("x", 1) == 1
    assert Weights().of("a", 12.5) == 12.5


def test_who_announced_nothing_counts_as_the_median():
    assert Weights({"a": 10, "b": 700, "c": 30}).of("silent", 1) == 30
    assert Weights({}).of("silent", 1) == 1
