"""The privacy loss of a run, for the sampling that is really used.

    sampled    uses x (each unit with probability q, Gaussian noise z C on the sum)
    others     uses x (Gaussian noise z C) = one use with noise z C / sqrt(uses)

A unit is a client or an example. Without sampling epsilon follows from a closed form, exact. With
it, it comes from privacy loss distributions (PLD), which are tight, or from Renyi accounting (RDP)
where their grid would be too large: both are upper bounds, and RDP is also the check of PLD.
Adjacent data sets differ in what one unit adds: its clipped part, or nothing. Where a local
mechanism must hide which of two values was sent, the distance is twice that.

No input takes more than a second or two: the grid of a PLD is bounded.

References:
  Balle, Wang, Improving the Gaussian Mechanism for Differential Privacy, ICML 2018 (theorem 8).
  Dwork, Roth, The Algorithmic Foundations of Differential Privacy, 2014, appendix A.
  Koskela et al., Computing Tight Differential Privacy Guarantees Using FFT, AISTATS 2020 (PLD).
  Mironov, Renyi Differential Privacy, CSF 2017 (RDP).
"""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from fedpeft.core.errors import PrivacyError

if TYPE_CHECKING:
    from dp_accounting.pld.privacy_loss_distribution import PrivacyLossDistribution

_LEAST, _MOST = 1e-2, 1e4
"""The noise multipliers between which calibration searches."""

_GRID, _COARSE = 200_000, 10_000
_CELLS = 15
_USES = 100_000


@dataclass(frozen=True)
class Mechanism:
    """The mechanism that is repeated in a run.

    Attributes:
      noise_multiplier: deviation of the noise, in units of the clip bound, >= 0.
      sampling: probability q of taking part, drawn in secret; None claims no amplification.
      distance: largest change of the sum by one contribution, in units of the clip bound.
    """

    noise_multiplier: float
    sampling: float | None = None
    distance: float = 1.0


def epsilon_of(mechanism: Mechanism, uses: int, delta: float) -> float:
    """Return epsilon after `uses` rounds or steps; infinite without noise.

    Args:
      mechanism: the mechanism that is repeated.
      uses: number of rounds under sampling, else the turns of one client (uses of one example).
      delta: in (0, 1).
    """
    return _epsilon(mechanism, uses, delta)


def epsilon_of_all(parts: Sequence[tuple[Mechanism, int]], delta: float) -> float:
    """Return epsilon of several mechanisms on the same data, each with its number of uses.

    Those of one sampling probability count as if each had the smallest ratio of noise to distance
    among them; different probabilities are added up by RDP. Both are upper bounds.
    """
    least: dict[float | None, tuple[float, int]] = {}
    for mechanism, uses in parts:
        ratio = mechanism.noise_multiplier / mechanism.distance
        before, count = least.get(mechanism.sampling, (math.inf, 0))
        least[mechanism.sampling] = min(before, ratio), count + uses
    groups = [(Mechanism(ratio, sampling), uses) for sampling, (ratio, uses) in least.items()]
    if len(groups) > 1:
        return _rdp(tuple(groups), delta)
    return epsilon_of(*groups[0], delta) if groups else 0.0


def rdp_epsilon_of(mechanism: Mechanism, uses: int, delta: float) -> float:
    """Return epsilon by RDP: an upper bound that is looser, and independent of the PLD code."""
    return _rdp(((mechanism, uses),), delta)


@functools.lru_cache(maxsize=64)
def calibrate(mechanism: Mechanism, uses: int, delta: float, epsilon: float) -> float:
    """Return the smallest noise multiplier (to 0.1 %) that spends at most `epsilon`.

    Args:
      mechanism: the mechanism; its own noise multiplier is ignored.
      uses: as for `epsilon_of`.
      delta: in (0, 1).
      epsilon: the target, > 0; one that no noise exceeds gets 0.01.

    Raises:
      PrivacyError: if no multiplier up to 10,000 is enough.
    """

    def enough(multiplier: float, *, grid: int = _COARSE) -> bool:
        chosen = replace(mechanism, noise_multiplier=multiplier)
        return _epsilon(chosen, uses, delta, grid=grid) <= epsilon

    low, high = _LEAST, _MOST
    if not enough(high):
        raise PrivacyError(
            f"privacy.epsilon: found {epsilon}; no noise multiplier up to 10,000 reaches it in "
            f"{uses} uses at delta {delta}. Raise epsilon or delta, or lower federation.rounds"
        )
    if enough(low):
        return low
    while high / low > 1.001:
        middle = math.sqrt(high * low)
        low, high = (low, middle) if enough(middle) else (middle, high)
    while not enough(high, grid=_GRID):  # a coarse grid is no tighter; for rounding
        high *= 1.0005
    return high


def gaussian_deviation(epsilon: float, delta: float, sensitivity: float) -> float:
    """Return the classical noise of one Gaussian mechanism, S sqrt(2 ln(1.25/delta)) / epsilon."""
    return sensitivity * math.sqrt(2 * math.log(1.25 / delta)) / epsilon


def author_deviation(epsilon: float, delta: float, bound: float) -> float:
    """Return the noise of the paper's code (epsilon inside the root), which guarantees nothing."""
    return 2 * bound * math.sqrt(2 * math.log(1.25 / delta) / epsilon)


@functools.lru_cache(maxsize=4096)
def _epsilon(mechanism: Mechanism, uses: int, delta: float, *, grid: int = _GRID) -> float:
    if uses == 0:
        return 0.0
    effective = mechanism.noise_multiplier / mechanism.distance
    unsampled = _gaussian_epsilon(math.sqrt(uses) / effective if effective else math.inf, delta)
    if not _amplified(mechanism) or math.isinf(unsampled):
        return unsampled  # sampling cannot make it larger
    bound = _rdp(((mechanism, uses),), delta)
    if uses > _USES or math.isinf(bound):
        return min(unsampled, bound)
    interval = _interval(effective, mechanism.sampling or 1.0, bound, grid)
    if interval > 100:  # no grid can hold it
        return min(unsampled, bound)
    loss = _loss(effective, mechanism.sampling or 1.0, interval).self_compose(uses)
    return min(unsampled, bound, float(loss.get_epsilon_for_delta(delta)))


def _amplified(mechanism: Mechanism) -> bool:
    return mechanism.sampling is not None and mechanism.sampling < 1


@functools.lru_cache(maxsize=4096)
def _rdp(parts: tuple[tuple[Mechanism, int], ...], delta: float) -> float:
    parts = tuple((mechanism, uses) for mechanism, uses in parts if uses)
    if any(mechanism.noise_multiplier == 0 for mechanism, _ in parts):
        return math.inf
    import dp_accounting
    from dp_accounting import rdp

    logging.getLogger("absl").setLevel(logging.ERROR)  # RDP warns of the orders that it leaves out
    accountant: Any = rdp.RdpAccountant()
    for mechanism, uses in parts:
        event: Any = dp_accounting.GaussianDpEvent(mechanism.noise_multiplier / mechanism.distance)
        if _amplified(mechanism):
            event = dp_accounting.PoissonSampledDpEvent(mechanism.sampling, event)
        accountant.compose(dp_accounting.SelfComposedDpEvent(event, uses))
    return float(accountant.get_epsilon(delta)) if parts else 0.0


def _gaussian_epsilon(mean: float, delta: float) -> float:
    """Return epsilon of one Gaussian mechanism whose noise is 1/`mean` times its sensitivity.

    delta(e) = Phi(m/2 - e/m) - exp(e) Phi(-m/2 - e/m), computed with logarithms.
    """
    if mean > 1e6:
        return math.inf
    high = mean * mean / 2 + mean * math.sqrt(-2 * math.log(delta))

    def log_delta(epsilon: float) -> float:
        first = _log_phi(mean / 2 - epsilon / mean)
        second = epsilon + _log_phi(-mean / 2 - epsilon / mean)
        return first + math.log1p(-math.exp(second - first)) if second < first else -math.inf

    return _smallest(lambda epsilon: log_delta(epsilon) <= math.log(delta), high)


def _smallest(enough: Callable[[float], bool], high: float) -> float:
    """Return the smallest number from 0 to `high` that is enough, from above, by bisection."""
    low = 0.0
    if enough(low):
        return low
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def _log_phi(x: float) -> float:
    """Return the logarithm of the normal distribution function."""
    if x > -30:
        return math.log(0.5 * math.erfc(-x / math.sqrt(2)))
    tail = 1 - 1 / x**2 + 3 / x**4 - 15 / x**6
    return -x * x / 2 - math.log(-x) - 0.5 * math.log(2 * math.pi) + math.log(tail)


def _interval(effective: float, sampling: float, bound: float, grid: int) -> float:
    """Return the width of a grid's cells: small for the loss of one use and for epsilon.

    Args:
      effective: noise multiplier, in units of the distance.
      sampling: probability of a unit.
      bound: an upper bound of epsilon.
      grid: the largest number of cells for one use.
    """
    spread = sampling * math.sqrt(math.expm1(min(effective**-2, 100.0)))  # of one use's loss
    widest = (effective**-2) / 2 + 12 / effective
    finest = min(1e-4, bound / 1000, spread / 10) * (_GRID / grid)
    return max(finest, widest / grid, bound / (_CELLS * grid))


@functools.lru_cache(maxsize=8)
def _loss(effective: float, sampling: float, interval: float) -> PrivacyLossDistribution:
    """Return the privacy loss distribution of one use, cached for all numbers of uses."""
    from dp_accounting.pld import privacy_loss_distribution as losses

    return losses.from_gaussian_mechanism(
        effective, sampling_prob=sampling, value_discretization_interval=interval
    )
