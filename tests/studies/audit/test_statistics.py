"""Figures of an audit against closed forms, enumeration and the accountant."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from scipy.stats import binom, norm

from fedpeft.studies.audit.statistics import (
    Evidence,
    Normal,
    Rule,
    Trial,
    allowed_failures,
    choose_rule,
    count_right,
    epsilon_between,
    estimate_interval,
    fit,
    log_ratios,
    lower_bound,
    p_value,
)
from fedpeft.wire.privacy_accounting import Mechanism, epsilon_of

CLAIM = Trial(Mechanism(2.0), 1, 200, 1e-5, 0.95, 1.9)


@pytest.mark.parametrize("uses", [1, 4])
@pytest.mark.parametrize("noise", [0.8, 2.0])
@pytest.mark.parametrize("delta", [1e-3, 1e-6])
def test_two_gaussians_cost_what_the_accountant_says(noise, uses, delta):
    far = Normal(uses, noise * math.sqrt(uses))
    found = epsilon_between(Normal(0.0, far.deviation), far, delta)
    assert found == pytest.approx(epsilon_of(Mechanism(noise), uses, delta), rel=1e-3)


def test_two_gaussians_meet_balle_and_wang():
    mu, epsilon = 1.3, epsilon_between(Normal(0, 1), Normal(1.3, 1), 1e-4)
    left = norm.cdf(mu / 2 - epsilon / mu)
    assert left - math.exp(epsilon) * norm.cdf(-mu / 2 - epsilon / mu) == pytest.approx(1e-4)


@pytest.mark.parametrize("seen", [Normal(1, 0.6), Normal(1, 1.7), Normal(0, 1.4), Normal(3, 0.9)])
def test_unequal_spreads_agree_with_a_sum_over_a_grid(seen):
    epsilon = epsilon_between(Normal(0, 1), seen, 1e-3)
    x = np.linspace(-30, 30, 600_001)
    p, q = norm.pdf(x), norm.pdf(x, seen.mean, seen.deviation)
    factor = math.exp(epsilon)
    both = [np.maximum(0, a - factor * b).sum() * 1e-4 for a, b in ((p, q), (q, p))]
    assert max(both) == pytest.approx(1e-3, rel=1e-3)


def test_equal_gaussians_cost_nothing_and_far_ones_are_finite():
    assert epsilon_between(Normal(2, 3), Normal(2, 3), 1e-9) == 0.0
    assert epsilon_between(Normal(0, 1), Normal(40, 0.5), 1e-5) > 600


@pytest.mark.parametrize(("seeds", "least"), [(4, 3), pytest.param(10, 7, marks=pytest.mark.slow)])
def test_the_interval_of_an_estimate_covers_the_truth(seeds, least):
    truth = epsilon_between(Normal(0, 1), Normal(1, 1), 1e-3)
    draws = np.random.default_rng(2)
    inside = 0
    for seed in range(seeds):
        seen = 1 + draws.standard_normal(300)
        low, high = estimate_interval((seen, Normal(0, 1)), 1e-3, confidence=0.95, seed=seed)
        inside += low <= truth <= high
    assert inside >= least


def enumerated(evidence: Evidence, ratio: int, delta: Fraction) -> Fraction:
    """The p-value by going through every pattern of right and wrong guesses, in fractions."""
    right = Fraction(ratio, ratio + 1)
    chance = {n: Fraction(0) for n in range(evidence.guesses + 1)}
    for pattern in itertools.product((True, False), repeat=evidence.guesses):
        chance[sum(pattern)] += math.prod((right if hit else 1 - right) for hit in pattern)
    luck = sum(p for n, p in chance.items() if n >= evidence.right)
    steep = max(
        sum(p for n, p in chance.items() if evidence.right - i <= n < evidence.right) / i
        for i in range(1, evidence.canaries + 1)
    )
    return luck + 2 * evidence.canaries * delta * steep


@pytest.mark.parametrize("right", [3, 5, 6])
@pytest.mark.parametrize("ratio", [1, 3])
def test_p_value_equals_an_enumeration(right, ratio):
    evidence, delta = Evidence(8, 6, right), Fraction(1, 1000)
    exact = min(Fraction(1), enumerated(evidence, ratio, delta))
    assert p_value(evidence, math.log(ratio), float(delta)) == pytest.approx(float(exact))


@pytest.mark.parametrize("right", [4, 5, 6])
def test_p_value_bounds_a_mechanism_that_uses_up_its_delta(right):
    """Each bit is told with probability delta, else answered at random with odds e^epsilon."""
    delta, epsilon = 0.02, 1.0
    accuracy = delta + (1 - delta) / (1 + math.exp(-epsilon))
    true = binom.sf(right - 1, 6, accuracy)
    assert p_value(Evidence(6, 6, right), epsilon, delta) >= true
    assert p_value(Evidence(6, 6, right), epsilon, 0.0) < true  # the control: delta matters


def test_random_guesses_show_nothing():
    assert lower_bound(Evidence(1000, 200, 100), 1e-5, 0.95) == 0.0
    wrong = binom.sf(np.arange(201), 200, 0.5)
    shown = [n for n in range(201) if lower_bound(Evidence(1000, 200, n), 0.0, 0.95) > 0]
    assert wrong[min(shown) - 1] <= 0.05


@pytest.mark.parametrize("epsilon", [0.5, 2.0])
def test_the_bound_exceeds_a_true_epsilon_as_rarely_as_it_says(epsilon):
    accuracy = 1 / (1 + math.exp(-epsilon))
    bounds = [lower_bound(Evidence(100, 100, n), 0.0, 0.9) for n in range(101)]
    too_high = sum(binom.pmf(n, 100, accuracy) for n, b in enumerate(bounds) if b > epsilon)
    assert 0.02 < too_high <= 0.1
    assert bounds == sorted(bounds)


def test_more_confidence_and_more_delta_show_less():
    seen = Evidence(300, 200, 190)
    first = lower_bound(seen, 1e-5, 0.95)
    assert lower_bound(seen, 1e-5, 0.99) < first > lower_bound(seen, 1e-3, 0.95)


def test_allowed_failures_follow_from_the_confidence():
    assert (allowed_failures(20, 0.95), allowed_failures(20, 0.99)) == (4, 2)
    assert binom.sf(4, 20, 0.05) < 0.01 < binom.sf(3, 20, 0.05)


def test_counting_takes_the_ends_of_the_order():
    scores, present = np.array([3.0, 1.0, 2.0, 0.0]), np.array([True, False, False, True])
    assert count_right(scores, present, Rule(1, 1)) == 1
    assert count_right(scores, present, Rule(1, 0)) == 1
    assert count_right(scores, present, Rule(2, 2)) == 2


def test_log_ratios_are_those_of_the_densities():
    seen = np.array([[0.3, 1.4], [-0.2, 0.6]])
    there, away = norm.pdf(seen, 1, 2), norm.pdf(seen, 0, 2)
    always = np.log(there / away).sum(axis=0)
    np.testing.assert_allclose(log_ratios(seen, Mechanism(2.0)), always)
    mixed = np.log((0.25 * there + 0.75 * away) / away).sum(axis=0)
    np.testing.assert_allclose(log_ratios(seen, Mechanism(2.0, 0.25)), mixed)
    twice = np.log(there / norm.pdf(seen, -1, 2)).sum(axis=0)
    np.testing.assert_allclose(log_ratios(seen, Mechanism(2.0, distance=2.0)), twice)


def test_the_rule_is_chosen_to_expose_missing_noise():
    power = choose_rule(CLAIM)
    assert power.sound < CLAIM.epsilon < power.without_noise
    assert power.rule.guesses <= CLAIM.canaries
    weak = choose_rule(Trial(Mechanism(0.3), 9, 20, 1e-3, 0.95, 80.0))
    assert weak.without_noise < 80


def test_fit_is_mean_and_sample_deviation():
    assert fit(np.array([1.0, 3.0])) == Normal(2.0, math.sqrt(2))
