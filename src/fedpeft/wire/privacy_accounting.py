"""The privacy loss of a run, for the sampling that is really used.

    poisson    rounds x (each client with probability q, Gaussian noise z C on the sum)
    others     uses x (Gaussian noise z C), uses = most turns of any one client

Epsilon comes from privacy loss distributions (PLD), which are tight, with Renyi accounting (RDP) as
a check. Adjacent data sets differ in what one client (one example) adds: its clipped part, or
nothing. Where a local mechanism must hide which of two values was sent, the distance is twice that.

References:
  Dwork, Roth, The Algorithmic Foundations of Differential Privacy, 2014, appendix A.
  Koskela et al., Computing Tight Differential Privacy Guarantees Using FFT, AISTATS 2020 (PLD).
  Mironov, Renyi Differential Privacy, CSF 2017 (RDP).
"""

from __future__ import annotations

import functools
import logging
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from fedpeft.core.errors import PrivacyError

if TYPE_CHECKING:
    from dp_accounting.pld.privacy_loss_distribution import PrivacyLossDistribution

__all__ = [
    "Mechanism",
    "author_deviation",
    "calibrate",
    "epsilon_of",
    "gaussian_deviation",
    "rdp_epsilon_of",
]


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
    """Return epsilon after `uses` rounds, by PLD; infinite without noise.

    Args:
      mechanism: the mechanism that is repeated.
      uses: number of rounds under sampling, else the turns of one client (uses of one example).
      delta: in (0, 1).
    """
    return _epsilon(mechanism, uses, delta, kind="pld")


def rdp_epsilon_of(mechanism: Mechanism, uses: int, delta: float) -> float:
    """Return epsilon by RDP: an upper bound that is looser, and independent of the PLD code."""
    return _epsilon(mechanism, uses, delta, kind="rdp")


@functools.lru_cache(maxsize=64)
def calibrate(mechanism: Mechanism, uses: int, delta: float, epsilon: float) -> float:
    """Return the smallest noise multiplier (to 0.1 %) that spends at most `epsilon`.

    Args:
      mechanism: the mechanism; its own noise multiplier is ignored.
      uses: as for `epsilon_of`.
      delta: in (0, 1).
      epsilon: the target, > 0.

    Raises:
      PrivacyError: if no multiplier up to 10,000 is enough.
    """

    def spent(multiplier: float, kind: str = "pld") -> float:
        return _epsilon(replace(mechanism, noise_multiplier=multiplier), uses, delta, kind=kind)

    high = 0.5
    while spent(high, "rdp") > epsilon:  # RDP is the upper bound, and quick
        high *= 1.25
        if high > 1e4:
            raise PrivacyError(
                f"privacy.epsilon: found {epsilon}; no noise multiplier up to 10,000 reaches it in "
                f"{uses} uses at delta {delta}. Raise epsilon or delta, or lower federation.rounds"
            )
    low = high / 1.25
    while spent(low) <= epsilon:
        high, low = low, low / 1.25
    while high / low > 1.001:
        middle = math.sqrt(high * low)
        low, high = (low, middle) if spent(middle) <= epsilon else (middle, high)
    return high


def gaussian_deviation(epsilon: float, delta: float, sensitivity: float) -> float:
    """Return the classical noise of one Gaussian mechanism, S sqrt(2 ln(1.25/delta)) / epsilon."""
    return sensitivity * math.sqrt(2 * math.log(1.25 / delta)) / epsilon


def author_deviation(epsilon: float, delta: float, bound: float) -> float:
    """Return the noise of the paper's code (epsilon inside the root), which guarantees nothing."""
    return 2 * bound * math.sqrt(2 * math.log(1.25 / delta) / epsilon)


@functools.lru_cache(maxsize=4096)
def _epsilon(mechanism: Mechanism, uses: int, delta: float, *, kind: str) -> float:
    if uses == 0:
        return 0.0
    if mechanism.noise_multiplier == 0:
        return math.inf
    logging.getLogger("absl").setLevel(logging.ERROR)  # RDP warns of the orders that it leaves out
    effective = mechanism.noise_multiplier / mechanism.distance
    amplified = mechanism.sampling is not None and mechanism.sampling < 1
    sampling = mechanism.sampling if amplified else None
    if kind == "pld":
        return _pld_epsilon(effective, sampling, uses, delta)
    import dp_accounting
    from dp_accounting import rdp

    event: Any = dp_accounting.GaussianDpEvent(effective)
    if sampling is not None:
        event = dp_accounting.PoissonSampledDpEvent(sampling, event)
    accountant: Any = rdp.RdpAccountant()
    accountant.compose(dp_accounting.SelfComposedDpEvent(event, uses))
    return float(accountant.get_epsilon(delta))


def _pld_epsilon(effective: float, sampling: float | None, uses: int, delta: float) -> float:
    """Return epsilon by PLD; n Gaussians equal one Gaussian with noise smaller by sqrt(n)."""
    if sampling is None:
        loss = _loss(effective / math.sqrt(uses), None)
    else:
        loss = _loss(effective, sampling).self_compose(uses)
    return float(loss.get_epsilon_for_delta(delta))


@functools.lru_cache(maxsize=8)
def _loss(effective: float, sampling: float | None) -> PrivacyLossDistribution:
    """Return the privacy loss distribution of one use, cached for all numbers of uses."""
    from dp_accounting.pld import privacy_loss_distribution as losses

    return losses.from_gaussian_mechanism(effective, sampling_prob=sampling or 1.0)
