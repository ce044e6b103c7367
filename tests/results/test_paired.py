from __future__ import annotations

import math
import random
import statistics

import pytest
from scipy import stats

from fedpeft.results.paired import LEVEL, Comparison, correct


def drawn(mean: float, seeds: int, root: int, spread: float = 1.0) -> tuple[float, ...]:
    random_ = random.Random(root)
    return tuple(random_.gauss(mean, spread) for _ in range(seeds))


def test_probabilities_and_interval_are_those_of_scipy() -> None:
    margins = drawn(0.4, 12, 1)
    found = Comparison("", margins, tolerance=0.2)
    above = stats.ttest_1samp(margins, -0.2, alternative="greater")
    below = stats.ttest_1samp(margins, -0.2, alternative="less")
    within = stats.ttest_1samp(margins, 0.2, alternative="less")
    assert found.p_above == pytest.approx(above.pvalue)
    assert found.p_below == pytest.approx(below.pvalue)
    assert found.p_not_better == pytest.approx(within.pvalue)
    assert found.interval == pytest.approx(
        stats.t.interval(0.9, 11, statistics.fmean(margins), found.error)
    )


def test_holm_is_that_of_its_definition() -> None:
    found = [Comparison(str(at), drawn(mean, 6, at)) for at, mean in enumerate((-2, -1, 0, 1))]
    raw = [each.p_below for each in found]
    tested = correct(found)
    order = sorted(range(4), key=lambda at: raw[at])
    for place, at in enumerate(order):
        wanted = max(min(1.0, (4 - j) * raw[i]) for j, i in enumerate(order[: place + 1]))
        assert tested[at].p_below == pytest.approx(wanted)
    assert [each.what for each in tested] == [each.what for each in found]


def test_correction_protects_the_claim_and_nothing_else_changes() -> None:
    """With 20 true nulls some margin is often "below"; after the correction seldom."""
    claims = [[Comparison("", drawn(0, 8, 100 * c + i)) for i in range(20)] for c in range(100)]
    plain = sum(any(each.verdict == "fail" for each in claim) for claim in claims)
    held = sum(any(each.verdict == "fail" for each in correct(claim)) for claim in claims)
    assert plain > 40 and held <= 11
    assert [c.p_above for c in claims[0]] == [c.p_above for c in correct(claims[0])]


@pytest.mark.parametrize(
    ("mean", "tolerance", "word"),
    [(0.0, 0.02, "equivalent"), (0.1, 0.02, "pass"), (-0.1, 0.02, "fail"), (0.0, 0.0, "undecided")],
)
def test_comparable_is_decided_by_two_one_sided_tests(
    mean: float, tolerance: float, word: str
) -> None:
    margins = tuple(mean + 0.002 * (-1) ** seed for seed in range(10))
    assert Comparison("", margins, tolerance).verdict == word


def test_as_many_seeds_as_needed_decide_with_the_stated_power() -> None:
    pilot = Comparison("", (0.2, 1.8, -0.6, 1.0, 0.1, 0.5))
    needed = pilot.seeds_needed
    assert needed is not None
    spread = statistics.stdev(pilot.margins)
    tries = [Comparison("", drawn(pilot.margin, needed, t, spread)) for t in range(600)]
    decided = sum(each.verdict == "pass" for each in tries) / len(tries)
    assert decided == pytest.approx(0.8, abs=0.05)
    half = [Comparison("", each.margins[: needed // 2]) for each in tries]
    assert sum(each.verdict == "pass" for each in half) / len(half) < 0.7  # fewer do not


def test_smallest_effect_is_where_the_seeds_needed_are_those_at_hand() -> None:
    found = Comparison("", drawn(0, 10, 3))
    shifted = [each + found.smallest_effect * 1.001 for each in found.margins]
    centre = statistics.fmean(found.margins)
    assert Comparison("", tuple(each - centre for each in shifted)).seeds_needed == 10


def test_one_seed_says_nothing_and_equal_seeds_say_all() -> None:
    alone = Comparison("", (0.3,))
    assert (alone.verdict, alone.seeds_needed) == ("undecided", None)
    assert alone.as_json()["error"] is None and alone.as_json()["interval"] == [None, None]
    assert math.isinf(alone.smallest_effect)
    assert Comparison("", (0.3, 0.3)).p_above == 0.0 < LEVEL
    assert Comparison("", (0.0, 0.0)).verdict == "undecided"
