"""The bootstrap over test items: by its definition, joint over both sides, and quick."""

from __future__ import annotations

import time

import numpy as np
import pytest

from fedpeft.results.bootstrap import over_items
from fedpeft.results.paired import Comparison


def compared(**parts: np.ndarray) -> Comparison:
    margin = float(sum(part.mean() for part in parts.values()))
    return Comparison("", (margin, margin), item_margins=parts)


def answers(size: int, seed: int, share: float) -> np.ndarray:
    return (np.random.default_rng(seed).random(size) < share).astype(float)


def interval(**parts: np.ndarray) -> tuple[float, float]:
    (found,) = over_items([compared(**parts)])
    assert found.item_interval is not None
    return found.item_interval


def test_interval_is_that_of_a_plain_bootstrap() -> None:
    items = answers(300, 1, 0.8) - answers(300, 2, 0.7)
    draws = np.random.default_rng(3)
    means = [items[draws.integers(300, size=300)].mean() for _ in range(10_000)]
    assert interval(digits=items) == pytest.approx(np.quantile(means, [0.05, 0.95]), abs=0.003)
    assert interval(digits=items) != pytest.approx(np.quantile(means, [0.01, 0.99]), abs=0.003)


def test_both_sides_are_scored_on_the_same_items() -> None:
    """Sides that are right on the same items differ by a constant, whatever is drawn."""
    right = answers(500, 1, 0.6)
    assert interval(digits=right - right) == (0.0, 0.0)
    low, high = interval(digits=right - answers(500, 2, 0.6))
    assert high - low > 0.05, "sides that are right on different items do not"


def test_data_sets_are_drawn_apart_and_their_parts_are_added() -> None:
    near, far = answers(400, 1, 0.5), -answers(900, 2, 0.5)
    low, high = interval(near=near, far=far)
    spread = np.sqrt(near.var() / 400 + far.var() / 900)
    assert (high - low) / 2 == pytest.approx(1.645 * spread, rel=0.05)


def test_comparisons_together_are_those_alone_and_nothing_else_changes() -> None:
    one, two = (
        compared(a=answers(90, 1, 0.5)),
        compared(a=answers(90, 2, 0.5), b=answers(50, 3, 0.1)),
    )
    unknown = Comparison("", (0.1, 0.2))
    together = over_items([one, unknown, two])
    assert together[1] == unknown and together[1].item_interval is None
    for alone, found in ((one, together[0]), (two, together[2])):
        assert found.item_interval == pytest.approx(over_items([alone])[0].item_interval)
        assert (found.margins, found.verdict) == (alone.margins, alone.verdict)
    assert over_items([]) == ()


def test_a_claim_takes_less_than_a_second() -> None:
    found = [
        compared(a=answers(1000, seed, 0.7) - answers(1000, -seed - 1 & 99, 0.7))
        for seed in range(18)
    ]
    best = min(_timed(found) for _ in range(3))
    assert best < 1.0


def _timed(found: list[Comparison]) -> float:
    began = time.process_time()
    over_items(found)
    return time.process_time() - began
