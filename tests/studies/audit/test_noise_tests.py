"""The p-values of noise: as rarely small as they say, and small where there is a fault."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from scipy.stats import binom

from fedpeft.studies.audit import noise_tests
from fedpeft.studies.audit.checks import CHECKS, FAMILY_LEVEL, Observed, judge

SIZES = (20, 32, 16, 52)
ROUNDS, SIZE = 4, sum(SIZES)
RUNS = 1000


def drawn(draws, rounds=ROUNDS):
    return draws.standard_normal((rounds, SIZE))


def sound(draws):
    """What is seen of a sound mechanism, without running it."""
    few_TP, many_TP = drawn(draws), drawn(draws)
    return Observed(
        np.concatenate([few_TP, many_TP]),
        SIZES,
        drawn(draws, 2),
        again_TP=drawn(draws, 1),
        sums_TP=drawn(draws),
        clip_scores=tuple(draws.standard_normal(3)),
        denominator_scores=tuple(draws.standard_normal(3)),
        few_TP=few_TP,
        many_TP=many_TP,
    )


@functools.lru_cache(maxsize=1)
def null_p_values():
    """The p-values of each check in many audits of a sound mechanism, at the limit of its claim."""
    draws = np.random.default_rng(5)
    audits = [judge(sound(draws)) for _ in range(RUNS)]
    return {name: np.array([a[i].p_value for a in audits]) for i, name in enumerate(CHECKS)}


@pytest.mark.parametrize("level", [0.2, 0.05, 0.01, FAMILY_LEVEL])
@pytest.mark.parametrize("name", CHECKS)
def test_a_sound_mechanism_is_accused_as_rarely_as_the_level_says(name, level):
    """More than the allowed number of 1,000 has a probability below 1e-5 at each level."""
    assert (null_p_values()[name] <= level).sum() <= binom.isf(1e-5, RUNS, level)


def test_no_check_is_empty():
    """The negative control: p-values are about as often small as allowed, so there is power."""
    for name, values in null_p_values().items():
        assert (values <= 0.2).mean() > 0.05, name


def test_the_levels_add_up_to_the_family_level():
    checks = judge(sound(np.random.default_rng(1)))
    assert sum(check.level for check in checks) == pytest.approx(FAMILY_LEVEL)
    values = np.stack(list(null_p_values().values()))
    accused = (values <= FAMILY_LEVEL / len(CHECKS)).any(axis=0).sum()
    assert accused <= binom.isf(1e-5, RUNS, FAMILY_LEVEL)


def zeroed(place):
    def change(noise_TP):
        noise_TP[place] = 0.0
        return noise_TP

    return change


FAULTS = {
    "half": (noise_tests.too_little, lambda x: x / 2),
    "one release without": (noise_tests.too_little, zeroed(np.s_[2])),
    "one tensor without": (noise_tests.too_little, zeroed(np.s_[:, 52:68])),
    "one coordinate without": (noise_tests.too_little, zeroed(np.s_[:, 7])),
    "halves": (noise_tests.alike_within, lambda x: np.tile(x[:, : SIZE // 2], 2)),
    "neighbours": (noise_tests.alike_within, lambda x: np.repeat(x[:, ::2], 2, axis=1)),
    "constant": (noise_tests.alike_within, lambda x: np.repeat(x[:, :1], SIZE, axis=1)),
    "tensors": (
        noise_tests.alike_within,
        lambda x: np.concatenate([x[:, :52], x[:, :16], x[:, 20:72]], axis=1),
    ),
}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_has_a_small_p_value(fault, seed):
    test, change = FAULTS[fault]
    noise_TP = drawn(np.random.default_rng(seed))
    assert test(noise_TP, SIZES) > FAMILY_LEVEL / len(CHECKS)
    assert test(change(noise_TP.copy()), SIZES) < FAMILY_LEVEL / len(CHECKS)


@pytest.mark.parametrize("factor", [1.0, 0.3, -1.0])
@pytest.mark.parametrize("moved", [0, 1, 57])
def test_a_copy_is_found_at_any_scale_sign_and_place(factor, moved):
    noise_TP = drawn(np.random.default_rng(4))
    copied_TP = noise_TP.copy()
    copied_TP[3] = factor * np.roll(noise_TP[0], moved)
    assert noise_tests.repeated(copied_TP) < 1e-6 < noise_tests.repeated(noise_TP)
    assert noise_tests.repeated_across(noise_TP, copied_TP[3:]) < 1e-6


def test_one_coordinate_and_no_noise_have_no_direction():
    assert noise_tests.repeated(np.ones((3, 1))) == 1.0
    assert noise_tests.repeated(np.zeros((3, 9))) == 1.0
    assert noise_tests.spread_unequal(np.zeros((2, 3)), np.zeros((2, 3))) == 1.0
    assert noise_tests.spread_unequal(np.zeros((2, 3)), np.ones((2, 3))) == 0.0


def test_the_smallest_deviation_that_is_seen_is_at_the_level():
    least = noise_tests.smallest_seen((ROUNDS, SIZE), 1e-4)
    flat_TP = np.full((ROUNDS, SIZE), least)
    assert noise_tests.too_little(flat_TP, SIZES) == pytest.approx(1e-4, rel=1e-6)
