"""Epsilon from canary clients: an estimate, and a lower bound at a stated confidence.

    score │   absent      present              estimate   epsilon between the two fitted Gaussians
          │  ▁▄█▇▄▁      ▁▄█▇▄▁                bound      a smaller epsilon would not allow
          └───────────────────────                        guesses as good as these

A canary is present or absent by a fair coin. Under (epsilon, delta)-DP, with m canaries, r guesses,

    P[at least v right] <= P[W >= v] + 2 m delta max_i P[v > W >= v - i] / i,
    W ~ Binomial(r, e^epsilon / (1 + e^epsilon)),

whatever the guesses are based on. They are made by likelihood ratio at the claimed noise. Their
number is chosen before the run, from simulated scores; chosen after it, the confidence would not
hold.

References:
  Andrew et al., One-shot Empirical Privacy Estimation for Federated Learning, ICLR 2024.
  Steinke, Nasr, Jagielski, Privacy Auditing with One (1) Training Run, NeurIPS 2023, theorem 5.2.
  Balle, Wang, Improving the Gaussian Mechanism for Differential Privacy, ICML 2018 (equal spread).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedpeft.wire.privacy_accounting import Mechanism

# T rounds, K canaries
Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]

_SHARES = (0.8, 0.5, 0.3, 0.2, 0.1, 0.05)  # of the canaries that are guessed
_REPEATS = 16
_HIGHEST = 1e6


@dataclass(frozen=True)
class Normal:
    """A Gaussian: mean and standard deviation > 0."""

    mean: float
    deviation: float


@dataclass(frozen=True)
class Rule:
    """A way to guess: the `top` highest scores are present, the `bottom` lowest are absent."""

    top: int
    bottom: int

    @property
    def guesses(self) -> int:
        """The number of guesses; for the other canaries none is made."""
        return self.top + self.bottom


@dataclass(frozen=True)
class Evidence:
    """The result of guessing.

    Attributes:
      canaries: number of canaries, each present or absent by a fair coin.
      guesses: number of guesses, 0 to `canaries`.
      right: number of right guesses.
    """

    canaries: int
    guesses: int
    right: int


@dataclass(frozen=True)
class Trial:
    """The setting of an audit, known before it runs.

    Attributes:
      mechanism: the claimed mechanism.
      uses: number of rounds in which a canary may take part.
      canaries: number of canaries.
      delta: delta of (epsilon, delta)-DP, in (0, 1).
      confidence: confidence of the lower bound, in (0, 1).
      epsilon: the accountant's epsilon.
      crosstalk: variance that the other canaries add to a score, in squared clip bounds.
    """

    mechanism: Mechanism
    uses: int
    canaries: int
    delta: float
    confidence: float
    epsilon: float
    crosstalk: float = 0.0


@dataclass(frozen=True)
class Power:
    """The lower bounds to expect of a trial, from simulated scores.

    Attributes:
      rule: how to guess.
      sound: the lower bound if the mechanism is as claimed.
      without_noise: the lower bound if its noise is left out.
    """

    rule: Rule
    sound: float
    without_noise: float


def fit(values: Floats) -> Normal:
    """Return mean and sample standard deviation of at least two values."""
    return Normal(float(values.mean()), max(float(values.std(ddof=1)), 1e-12))


def epsilon_between(null: Normal, seen: Normal, delta: float) -> float:
    """Return the smallest epsilon >= 0 at which two Gaussians are (epsilon, delta)-close.

    Args:
      null: scores of the absent canaries.
      seen: scores of the present canaries; the deviations may differ.
      delta: in (0, 1).

    Returns:
      Epsilon; infinite above a million.
    """

    def too_small(epsilon: float) -> bool:
        there, back = _divergence(seen, null, epsilon), _divergence(null, seen, epsilon)
        return max(there, back) > delta

    return _bracket(too_small, lambda high: 1e-7 * (1 + high))[1] if too_small(0.0) else 0.0


def _bracket(
    is_below: Callable[[float], bool], tolerance: Callable[[float], float]
) -> tuple[float, float]:
    """Bisect from below and above to where `is_below` turns false; (.., inf) above a million."""
    low, high = 0.0, 1.0
    while is_below(high):
        low, high = high, 2 * high
        if high > _HIGHEST:
            return low, math.inf
    while high - low > tolerance(high):
        middle = (low + high) / 2
        low, high = (middle, high) if is_below(middle) else (low, middle)
    return low, high


def _divergence(p: Normal, q: Normal, epsilon: float) -> float:
    """Return the integral of max(0, p - e^epsilon q).

    In deviations t of p, the log ratio of the densities is the quadratic
    (h^2 - 1)/2 t^2 + g h t + g^2/2 - log h, with g = (mean_p - mean_q)/s_q and h = s_p/s_q.
    """
    g, h = (p.mean - q.mean) / q.deviation, p.deviation / q.deviation
    a, b, c = (h * h - 1) / 2, g * h, g * g / 2 - math.log(h) - epsilon
    inside = outside = 0.0
    for low, high in _positive(a, b, c):
        inside += math.exp(_log_mass(low, high))
        outside += math.exp(min(epsilon + _log_mass(g + h * low, g + h * high), 700.0))
    return max(0.0, inside - outside)


def _positive(a: float, b: float, c: float) -> Iterator[tuple[float, float]]:
    """Yield the intervals in which a t^2 + b t + c is above 0."""
    if abs(a) < 1e-12:
        if b == 0:
            yield from [(-math.inf, math.inf)] if c > 0 else []
        else:
            yield (-c / b, math.inf) if b > 0 else (-math.inf, -c / b)
        return
    discriminant = b * b - 4 * a * c
    if discriminant <= 0:
        yield from [(-math.inf, math.inf)] if a > 0 else []
        return
    half = -(b + math.copysign(math.sqrt(discriminant), b)) / 2
    first, last = sorted((half / a, c / half))
    if a < 0:
        yield first, last
    else:
        yield -math.inf, first
        yield last, math.inf


def _log_mass(low: float, high: float) -> float:
    """Return the logarithm of the standard normal's mass between two points."""
    from scipy.special import log_ndtr

    if low > 0:
        low, high = -high, -low
    upper, lower = float(log_ndtr(high)), float(log_ndtr(low))
    return upper + math.log1p(-math.exp(lower - upper)) if lower < upper else -math.inf


def estimate_interval(
    pair: tuple[Floats, Floats | Normal], delta: float, *, confidence: float, seed: int
) -> tuple[float, float]:
    """Return the bootstrap interval of `epsilon_between` fitted scores.

    Args:
      pair: scores of the present canaries, and of the absent ones or their known Gaussian.
      delta: in (0, 1).
      confidence: nominal confidence of the interval, in (0, 1).
      seed: seed of the resamples.
    """
    draws = np.random.default_rng(seed)
    seen, null = pair

    def again(values: Floats) -> Normal:
        return fit(draws.choice(values, len(values)))

    found = [
        epsilon_between(null if isinstance(null, Normal) else again(null), again(seen), delta)
        for _ in range(200)
    ]
    low, high = np.quantile(
        found, [(1 - confidence) / 2, (1 + confidence) / 2], method="nearest"
    )  # "nearest": no arithmetic with infinite values
    return float(low), float(high)


def p_value(evidence: Evidence, epsilon: float, delta: float) -> float:
    """Bound the probability that (epsilon, delta)-DP lets anyone guess this well."""
    from scipy.stats import binom

    if evidence.right == 0:
        return 1.0
    accuracy = 1 / (1 + math.exp(-epsilon))
    by_luck = float(binom.sf(evidence.right - 1, evidence.guesses, accuracy))
    below = binom.pmf(np.arange(evidence.right - 1, -1, -1), evidence.guesses, accuracy)
    steps = np.arange(1, evidence.right + 1)
    steepest = float((np.cumsum(below) / steps).max())
    return min(1.0, by_luck + 2 * evidence.canaries * delta * steepest)


@functools.lru_cache(maxsize=4096)
def lower_bound(evidence: Evidence, delta: float, confidence: float) -> float:
    """Return the largest epsilon that the evidence rules out; 0 if it rules out none.

    If the mechanism is (e, delta)-DP, the result exceeds e with probability at most 1 - confidence.

    Args:
      evidence: its number of guesses must not depend on the scores.
      delta: in [0, 1).
      confidence: in (0, 1).
    """

    def is_rejected(epsilon: float) -> bool:
        return p_value(evidence, epsilon, delta) <= 1 - confidence

    return _bracket(is_rejected, lambda high: 1e-5)[0] if is_rejected(0.0) else 0.0


def allowed_failures(runs: int, confidence: float, *, alarm: float = 0.01) -> int:
    """Return how many of `runs` sound audits may have too high a lower bound by chance.

    Each exceeds epsilon with probability at most 1 - confidence; more failures than the result
    have a probability of at most `alarm`.
    """
    from scipy.stats import binom

    return next(n for n in range(runs + 1) if binom.sf(n, runs, 1 - confidence) <= alarm)


def levels(mechanism: Mechanism) -> tuple[float, float]:
    """Return what a canary adds along its direction, in clip bounds: present, absent.

    Distance 2 means one update or its opposite, distance 1 means one update or nothing.
    """
    return (1.0, -1.0) if mechanism.distance == 2 else (1.0, 0.0)


def log_ratios(projected_TK: Floats, mechanism: Mechanism) -> Floats:
    """Score each canary by the log likelihood ratio of present over absent.

    Args:
      projected_TK: aggregate (or reply) along each canary's direction, in clip bounds.
      mechanism: the claimed mechanism; its noise multiplier is above 0.

    Returns:
      Scores [K].
    """
    present, absent = levels(mechanism)
    middle, variance = (present + absent) / 2, mechanism.noise_multiplier**2
    ratio_TK = (present - absent) * (projected_TK - middle) / variance
    if mechanism.sampling is not None and mechanism.sampling < 1:
        away, there = math.log1p(-mechanism.sampling), math.log(mechanism.sampling)
        ratio_TK = np.logaddexp(away, there + ratio_TK)
    scores: Floats = ratio_TK.sum(axis=0)
    return scores


def count_right(scores: Floats, present: Flags, rule: Rule) -> int:
    """Return the number of right guesses of a rule."""
    order = np.argsort(scores, kind="stable")
    top = order[len(order) - rule.top :]
    return int(present[top].sum() + (~present[order[: rule.bottom]]).sum())


def choose_rule(trial: Trial) -> Power:
    """Choose how to guess, before any score is known.

    Of the rules that are expected to expose a mechanism without its noise, the one with the highest
    lower bound for a sound mechanism; if there are none, the one that comes nearest to exposing it.
    """
    found = [
        Power(rule, _expected(trial, rule, noise=True), _expected(trial, rule, noise=False))
        for rule in _rules(trial.canaries)
    ]
    able = [power for power in found if power.without_noise > trial.epsilon]
    if able:
        return max(able, key=lambda power: (power.sound, power.without_noise))
    return max(found, key=lambda power: (power.without_noise, power.sound))


def _rules(canaries: int) -> list[Rule]:
    halves = dict.fromkeys(max(1, int(share * canaries / 2)) for share in _SHARES)
    both = [Rule(half, half) for half in halves if 2 * half <= canaries]
    return [*both, *(Rule(half, 0) for half in halves)]


def _expected(trial: Trial, rule: Rule, *, noise: bool) -> float:
    """Return the lower bound at the mean number of right guesses over simulated audits."""
    counts = [count_right(*pair, rule) for pair in _simulated(trial, noise)]
    evidence = Evidence(trial.canaries, rule.guesses, int(np.mean(counts)))
    return lower_bound(evidence, trial.delta, trial.confidence)


@functools.lru_cache(maxsize=4)
def _simulated(trial: Trial, noise: bool) -> tuple[tuple[Floats, Flags], ...]:
    """Draw scores and presence of a few audits of the claimed mechanism, with or without noise."""
    draws = np.random.default_rng(0)
    return tuple(_simulate(trial, draws, noise=noise) for _ in range(_REPEATS))


def _simulate(trial: Trial, draws: np.random.Generator, *, noise: bool) -> tuple[Floats, Flags]:
    shape = (trial.uses, trial.canaries)
    chance = trial.mechanism.sampling or 1.0
    here, gone = levels(trial.mechanism)
    present = draws.random(trial.canaries) < 0.5
    taking = draws.random(shape) < chance
    projected_TK = np.where(present & taking, here, gone)
    spread = math.sqrt(trial.crosstalk)
    projected_TK = projected_TK + chance * spread * draws.standard_normal(trial.canaries)
    projected_TK += math.sqrt(chance * (1 - chance)) * spread * draws.standard_normal(shape)
    if noise:
        projected_TK += trial.mechanism.noise_multiplier * draws.standard_normal(shape)
    return log_ratios(projected_TK, trial.mechanism), present
