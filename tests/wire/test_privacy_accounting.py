"""Accounting against closed forms, a table, Renyi accounting and an outside accountant."""

from __future__ import annotations

import math
from statistics import NormalDist

import pytest

from fedpeft.core.errors import PrivacyError
from fedpeft.wire.privacy_accounting import (
    Mechanism,
    author_deviation,
    calibrate,
    epsilon_of,
    epsilon_of_all,
    gaussian_deviation,
    rdp_epsilon_of,
)

Q, ROUNDS, DELTA = 0.125, 50, 1e-3
TABLE = {0.8: (7.93, 6.59), 1.0: (5.057, 4.223), 2.0: (1.600, 1.359)}


def gaussian_delta(epsilon: float, multiplier: float) -> float:
    """The exact delta of one Gaussian mechanism (Balle and Wang, ICML 2018, theorem 8)."""
    phi = NormalDist().cdf
    half, ratio = 1 / (2 * multiplier), epsilon * multiplier
    return phi(half - ratio) - math.exp(epsilon) * phi(-half - ratio)


@pytest.mark.parametrize(("multiplier", "uses"), [(1.0, 1), (2.0, 1), (3.0, 10)])
def test_without_sampling_it_is_the_closed_form(multiplier, uses):
    epsilon = epsilon_of(Mechanism(multiplier), uses, DELTA)
    composed = multiplier / math.sqrt(uses)
    assert gaussian_delta(epsilon, composed) == pytest.approx(DELTA, rel=1e-3)
    assert gaussian_delta(0.99 * epsilon, composed) > DELTA * 1.01  # the test can fail


def test_twice_the_distance_is_half_the_noise():
    doubled = epsilon_of(Mechanism(2.0, distance=2.0), 3, DELTA)
    assert doubled == epsilon_of(Mechanism(1.0), 3, DELTA)


@pytest.mark.parametrize(
    "multiplier", [pytest.param(m, marks=[] if m > 1 else [pytest.mark.slow]) for m in TABLE]
)
def test_sampled_figures_are_those_of_the_table(multiplier):
    mechanism = Mechanism(multiplier, Q)
    rdp, pld = TABLE[multiplier]
    assert epsilon_of(mechanism, ROUNDS, DELTA) == pytest.approx(pld, rel=2e-3)
    assert rdp_epsilon_of(mechanism, ROUNDS, DELTA) == pytest.approx(rdp, rel=2e-3)
    assert rdp_epsilon_of(mechanism, ROUNDS, DELTA) > epsilon_of(mechanism, ROUNDS, DELTA)


def test_sampling_amplifies_and_is_not_claimed_by_itself():
    assert epsilon_of(Mechanism(1.0), 2, DELTA) > 1.5 * epsilon_of(Mechanism(1.0, Q), 2, DELTA)


def test_an_outside_accountant_agrees():
    accountants = pytest.importorskip("opacus.accountants")
    outside = accountants.RDPAccountant()
    outside.history = [(1.0, Q, ROUNDS)]
    orders = [1 + x / 10 for x in range(1, 100)] + list(range(12, 64))
    theirs = outside.get_epsilon(DELTA, alphas=orders)
    assert rdp_epsilon_of(Mechanism(1.0, Q), ROUNDS, DELTA) == pytest.approx(theirs, rel=1e-3)


def test_a_calibrated_multiplier_spends_the_target_and_no_more():
    multiplier = calibrate(Mechanism(0.0), 7, DELTA, 2.0)
    spent = epsilon_of(Mechanism(multiplier), 7, DELTA)
    assert 1.99 < spent <= 2.0
    assert epsilon_of(Mechanism(multiplier / 1.002), 7, DELTA) > 2.0


def test_nothing_costs_nothing_and_no_noise_costs_everything():
    assert epsilon_of(Mechanism(1.0, Q), 0, DELTA) == 0
    assert epsilon_of(Mechanism(0.0), 1, DELTA) == math.inf


def test_a_target_out_of_reach_is_refused():
    with pytest.raises(PrivacyError, match=r"privacy\.epsilon: found 1e-09.*Raise epsilon"):
        calibrate(Mechanism(0.0), 10, 1e-12, 1e-9)


@pytest.mark.parametrize(
    ("epsilon", "author", "right"), [(5.0, 3.378, 1.511), (10.0, 2.388, 0.755)]
)
def test_deviations_of_the_papers_code_and_of_the_correct_formula(epsilon, author, right):
    assert author_deviation(epsilon, 1e-3, 1.0) == pytest.approx(author, abs=6e-4)
    assert gaussian_deviation(epsilon, 1e-3, 2.0) == pytest.approx(right, abs=6e-4)


PRV = {
    (1.433, 64 / 1258, 120, 1e-5): 2.0087,
    (1.0, 0.125, 50, 1e-3): 4.2340,
    (0.7, 0.02, 500, 1e-5): 6.6643,
    (4.0, 0.3, 200, 1e-6): 5.4478,
}
"""(multiplier, rate, uses, delta) -> epsilon of opacus 1.6.0 by its PRV accountant:

a = opacus.accountants.PRVAccountant(); a.history = [(multiplier, rate, uses)]
a.get_epsilon(delta, eps_error=0.01, delta_error=delta / 1000)
"""


@pytest.mark.parametrize("case", PRV)
def test_sampled_figures_are_those_of_opacus_within_its_error(case):
    """Opacus returns the upper end of its interval, which is twice its error of 0.01 wide."""
    multiplier, rate, uses, delta = case
    assert PRV[case] - 0.02 <= epsilon_of(Mechanism(multiplier, rate), uses, delta) <= PRV[case]
    assert epsilon_of(Mechanism(0.98 * multiplier, rate), uses, delta) > PRV[case]


@pytest.mark.filterwarnings("ignore")
def test_the_table_of_opacus_is_what_it_says():
    accountants = pytest.importorskip("opacus.accountants")
    (case, *_) = PRV
    outside = accountants.PRVAccountant()
    outside.history = [case[:3]]
    theirs = outside.get_epsilon(case[3], eps_error=0.01, delta_error=case[3] / 1000)
    assert theirs == pytest.approx(PRV[case], abs=1e-3)


@pytest.mark.parametrize("multiplier", [0.05, 1e-3, 50.0])
@pytest.mark.parametrize("delta", [1e-3, 1e-12])
def test_the_closed_form_holds_for_extreme_noise(multiplier, delta):
    epsilon = epsilon_of(Mechanism(multiplier), 1, delta)
    rdp = rdp_epsilon_of(Mechanism(multiplier), 1, delta)
    assert 0 <= epsilon <= rdp
    assert multiplier > 1 or epsilon > 0.9 * rdp


@pytest.mark.parametrize("rate", [pytest.param(0.01, marks=pytest.mark.slow), 0.5, None])
def test_calibration_spends_the_target_within_a_hundredth(rate):
    multiplier = calibrate(Mechanism(0.0, rate), 100, 1e-5, 2.0)
    assert 1.98 < epsilon_of(Mechanism(multiplier, rate), 100, 1e-5) <= 2.0


def test_mechanisms_of_several_rates_add_up():
    sampled, plain = (Mechanism(2.0, 0.1), 50), (Mechanism(4.0), 2)
    both = epsilon_of_all([sampled, plain], 1e-5)
    assert both > max(epsilon_of(*sampled, 1e-5), epsilon_of(*plain, 1e-5))
    assert both < epsilon_of(Mechanism(2.0), 52, 1e-5)
    assert epsilon_of_all([plain, plain], 1e-5) == epsilon_of(Mechanism(4.0), 4, 1e-5)
    assert epsilon_of_all([], 1e-5) == 0
