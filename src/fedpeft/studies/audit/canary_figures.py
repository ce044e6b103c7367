"""The audit by canary clients: an estimate of epsilon, and a lower bound of it.

The experiment's own rounds run, with canary clients added; what they show is compared with what
the accountant claims.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fedpeft.build.run import BuiltRun
from fedpeft.core import seeds
from fedpeft.experiment.epsilon import epsilon_after, mechanism_of
from fedpeft.experiment.experiment import Experiment
from fedpeft.experiment.privacy import PRIVACY_MODES
from fedpeft.rounds.client_half import ClientHalf
from fedpeft.studies.audit.canaries import (
    Canaries,
    CanaryEngine,
    Projections,
    canary_trainer,
    draw_canaries,
    watch_rounds,
)
from fedpeft.studies.audit.statistics import (
    Evidence,
    Floats,
    Normal,
    Trial,
    choose_rule,
    count_right,
    epsilon_between,
    estimate_interval,
    fit,
    log_ratios,
    lower_bound,
)

NO_CANARIES = {
    "canaries": 0,
    "present": 0,
    "canary_rounds": 0,
    "epsilon_lower_bound": None,
    "guesses": 0,
    "right": 0,
    "violated": None,
    "expected_lower_bound": None,
    "expected_without_noise": None,
    "can_tell": False,
    "epsilon_estimate": None,
    "epsilon_estimate_interval": None,
    "null": None,
    "cosines": None,
}
"""The keys of `audit.json` about canaries, where there are none: epsilon protects examples."""


@dataclass(frozen=True)
class AuditRequest:
    """The options of an audit.

    Attributes:
      canaries: number of canaries, each present or absent by a fair coin, at least 20; None: 500,
        or a tenth of the delta's parameters if that is fewer, because canaries add noise to one
        another's scores.
      confidence: confidence of the lower bound, in (0, 1).
      leave_out_noise: whether to run without the claimed noise.
      train: whether ordinary clients train; if not, they send zero updates, for which epsilon holds
        too.
      delta: the delta at which epsilon is compared; None: `privacy.delta`.
    """

    canaries: int | None = None
    confidence: float = 0.95
    leave_out_noise: bool = False
    train: bool = True
    delta: float | None = None


def claimed_epsilon(claimed: Experiment, request: AuditRequest, rounds: int) -> tuple[float, float]:
    """Return delta, and the accountant's epsilon after some rounds at that delta."""
    delta = request.delta or claimed.privacy.delta
    at_delta = claimed.privacy.model_copy(update={"delta": delta})
    epsilon = epsilon_after(claimed.model_copy(update={"privacy": at_delta}), rounds)
    assert epsilon is not None, "there is noise"
    return delta, epsilon


def run_canaries(
    claimed: Experiment,
    request: AuditRequest,
    built: BuiltRun,
    rounds: int,
    on_round: Callable[[int], None],
) -> dict[str, Any]:
    """Run the rounds with canaries in them.

    Args:
      claimed: resolved; its mode is `central` or `local`.
      request: the options.
      built: the parts of the run.
      rounds: number of rounds.
      on_round: called after each round with its number.

    Returns:
      the keys of `audit.json` about canaries.

    Raises:
      RoundError: if a round fails.
    """
    canaries = draw_canaries(
        _count(request, built),
        seed=claimed.seed,
        clip_norm=claimed.privacy.clip_norm,
        opposite=PRIVACY_MODES[claimed.privacy.mode].hides_which,
    )
    plan = built.plan
    trainer = canary_trainer(canaries, plan.spec.num_params)
    half = ClientHalf(trainer, plan.up, plan.down, plan.spec, private=True)
    engine = CanaryEngine(built.engine, half, canaries, idle=not request.train)
    found = watch_rounds((built.start, plan), engine, canaries, rounds, on_round)
    trial = _trial(claimed, request, built, rounds, len(found.projected_TK))
    figures = _figures(request, trial, canaries, found)
    return {**figures, **_estimate(canaries, found, trial, plan.spec.num_params)}


def _count(request: AuditRequest, built: BuiltRun) -> int:
    return request.canaries or max(20, min(500, built.plan.spec.num_params // 10))


def _figures(
    request: AuditRequest,
    trial: Trial,
    canaries: Canaries,
    found: Projections,
) -> dict[str, Any]:
    power = choose_rule(trial)
    scores = log_ratios(found.projected_TK, trial.mechanism)
    right = count_right(scores, canaries.present, power.rule)
    evidence = Evidence(trial.canaries, power.rule.guesses, right)
    bound = lower_bound(evidence, trial.delta, request.confidence)
    return {
        "canaries": trial.canaries,
        "present": int(canaries.present.sum()),
        "canary_rounds": trial.uses,
        "epsilon_lower_bound": bound,
        "guesses": power.rule.guesses,
        "right": right,
        "violated": bound > trial.epsilon,
        "expected_lower_bound": power.sound,
        "expected_without_noise": power.without_noise,
        "can_tell": power.without_noise > trial.epsilon,
    }


def _trial(
    claimed: Experiment, request: AuditRequest, built: BuiltRun, rounds: int, uses: int
) -> Trial:
    delta, epsilon = claimed_epsilon(claimed, request, rounds)
    canaries = _count(request, built)
    blur = canaries / 2 / built.plan.spec.num_params
    return Trial(
        mechanism_of(claimed),
        uses,
        canaries,
        delta,
        request.confidence,
        epsilon,
        0.0 if PRIVACY_MODES[claimed.privacy.mode].hides_which else blur,
    )


def _estimate(
    canaries: Canaries, found: Projections, trial: Trial, dimension: int
) -> dict[str, object]:
    """Return Andrew et al.'s estimate, and the cosines that it is computed from.

    The cosine of an absent canary has mean 0 and variance 1/d (central); for canaries that sent the
    opposite, the Gaussian is fitted too (local).
    """
    there = found.cosines_K[canaries.present]
    away = found.cosines_K[~canaries.present]
    null: Normal | Floats = away if canaries.opposite else Normal(0.0, dimension**-0.5)
    known = null if isinstance(null, Normal) else fit(null)
    interval = estimate_interval(
        (there, null),
        trial.delta,
        confidence=trial.confidence,
        seed=seeds.derive(canaries.seed, "audit", "bootstrap"),
    )
    return {
        "epsilon_estimate": _finite(epsilon_between(known, fit(there), trial.delta)),
        "epsilon_estimate_interval": [_finite(end) for end in interval],
        "null": {"mean": known.mean, "deviation": known.deviation},
        "cosines": {
            "present": [round(float(value), 6) for value in there],
            "absent": [round(float(value), 6) for value in away],
        },
    }


def _finite(value: float) -> float | None:
    """Return a number; None where it is infinite, which JSON cannot hold."""
    return value if math.isfinite(value) else None
