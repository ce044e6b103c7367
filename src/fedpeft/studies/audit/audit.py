"""`fedpeft audit`: do the rounds that really run keep the claimed epsilon?

    accountant   epsilon is at most this                    from the claimed noise and sampling
    estimate     epsilon is about this, from the canaries   Andrew et al.
    lower bound  epsilon is above this, at a confidence     Steinke et al.

The experiment's own rounds run, with canary clients added. With `leave_out_noise` they run without
the noise that the accountant assumes: the negative control, which shows that an audit can fail.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fedpeft.build.run import BuiltRun, build_run
from fedpeft.core import seeds
from fedpeft.core.errors import PrivacyError
from fedpeft.experiment.epsilon import epsilon_after, may_go_on, mechanism_of
from fedpeft.experiment.experiment import Experiment
from fedpeft.experiment.privacy import PRIVACY_MODES
from fedpeft.experiment.resolve import resolve
from fedpeft.pictures.style import write_picture
from fedpeft.rounds.client_half import ClientHalf
from fedpeft.runs.files import write_json
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
    allowed_failures,
    choose_rule,
    count_right,
    epsilon_between,
    estimate_interval,
    fit,
    log_ratios,
    lower_bound,
)

__all__ = ["AuditRequest", "audit", "audit_seeds", "write_audit"]

OnRound = Callable[[int, int], None]


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


def audit(
    experiment: Experiment, request: AuditRequest, on_round: OnRound = lambda number, rounds: None
) -> dict[str, Any]:
    """Run an experiment's rounds with canaries, and compare epsilon with the claimed one.

    Args:
      experiment: checked; its privacy mode is `central` or `local`.
      request: the options.
      on_round: called after each round with its number and the number of rounds.

    Returns:
      The content of `audit.json`.

    Raises:
      PrivacyError: if the experiment claims no epsilon for whole clients.
      RoundError: if a round fails.
    """
    began = time.perf_counter()
    resolved = resolve(experiment)
    claimed = resolved.experiment
    _check(claimed, request)
    rounds = _rounds(claimed)
    built = build_run(replace(resolved, experiment=_as_run(claimed, request)))
    try:
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
        found = watch_rounds(
            (built.start, plan), engine, canaries, rounds, lambda n: on_round(n, rounds)
        )
    finally:
        built.engine.close()
    trial = _trial(claimed, request, built, len(found.projected_TK))
    figures = _figures(claimed, request, trial, canaries, found)
    size = plan.spec.num_params
    estimate = _estimate(canaries, found, trial, size)
    return {
        **figures,
        **estimate,
        "parameters": size,
        "rounds": rounds,
        "seconds": round(time.perf_counter() - began, 3),
    }


def audit_seeds(
    experiment: Experiment,
    request: AuditRequest,
    count: int,
    on_seed: Callable[[int, int], None] = lambda done, count: None,
) -> dict[str, Any]:
    """Audit with seeds seed, seed + 1, ..., and count how often the lower bound is too high.

    Returns:
      The content of `audit.json`: the audits and their counts.
    """
    runs = []
    for number in range(count):
        changed = experiment.model_copy(update={"seed": experiment.seed + number})
        runs.append(audit(changed, request))
        on_seed(number + 1, count)
    return {
        "seeds": [run["seed"] for run in runs],
        "exceeded": sum(run["violated"] for run in runs),
        "allowed_failures": allowed_failures(count, request.confidence),
        "confidence": request.confidence,
        "noise_left_out": request.leave_out_noise,
        "runs": runs,
    }


def write_audit(found: Mapping[str, Any], out: Path) -> None:
    """Write `audit.json`, `audit.svg` and `audit.png` to a folder, which is made if missing."""
    from fedpeft.studies.audit.picture import draw_audit, draw_seeds

    out.mkdir(parents=True, exist_ok=True)
    write_picture(draw_seeds(found) if "runs" in found else draw_audit(found), out / "audit")
    write_json(out / "audit.json", found)


def _check(claimed: Experiment, request: AuditRequest) -> None:
    """Check that the experiment claims an epsilon that canary clients can test."""
    name = claimed.privacy.mode
    unit = PRIVACY_MODES[name].unit
    if unit != "client":
        allowed = " and ".join(
            repr(n) for n, mode in PRIVACY_MODES.items() if mode.unit == "client"
        )
        raise PrivacyError(
            f"privacy.mode: found {name!r}; {_REASONS[unit]}. An audit by canary clients is for "
            f"{allowed}: --set privacy.mode=central --set privacy.noise_multiplier=1"
        )
    if not claimed.privacy.noise_multiplier:
        raise PrivacyError(
            "privacy.noise_multiplier: found 0, which gives no epsilon; allowed are numbers > 0: "
            "set the claimed noise; --leave-out-noise then runs without it"
        )
    if not 0 < request.confidence < 1:
        raise PrivacyError(
            f"--confidence: found {request.confidence}; allowed is a number between 0 and 1, "
            "such as 0.95"
        )
    if request.delta is not None and not 0 < request.delta < 1:
        raise PrivacyError(
            f"--delta: found {request.delta}; allowed is a number between 0 and 1, such as 1e-5"
        )


_REASONS: Mapping[str | None, str] = {
    None: "it has no epsilon to compare with",
    "example": "its epsilon protects single examples, and canaries are whole clients",
}


def _rounds(claimed: Experiment) -> int:
    """Return the number of rounds before the privacy budget ends the run."""
    rounds = 0
    while rounds < claimed.federation.rounds and may_go_on(claimed, rounds):
        rounds += 1
    if not rounds:
        raise PrivacyError(
            f"privacy.epsilon: found {claimed.privacy.epsilon}, which allows no round at "
            f"privacy.noise_multiplier = {claimed.privacy.noise_multiplier}. Raise one of the two"
        )
    return rounds


def _as_run(claimed: Experiment, request: AuditRequest) -> Experiment:
    """Return the experiment that is run, without noise or with idle clients if requested."""
    changed: dict[str, object] = {}
    if request.leave_out_noise:
        without = {"noise_multiplier": 0.0, "epsilon": None}
        changed["privacy"] = claimed.privacy.model_copy(update=without)
    if not request.train:
        changed["engine"] = claimed.engine.model_copy(update={"workers": 1})
    return claimed.model_copy(update=changed)


def _count(request: AuditRequest, built: BuiltRun) -> int:
    return request.canaries or max(20, min(500, built.plan.spec.num_params // 10))


def _figures(
    claimed: Experiment,
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
    chosen = claimed.privacy
    return {
        "mode": chosen.mode,
        "sampling": claimed.federation.sampling,
        "seed": claimed.seed,
        "delta": trial.delta,
        "noise_multiplier": chosen.noise_multiplier,
        "noise_left_out": request.leave_out_noise,
        "trained": request.train,
        "canaries": trial.canaries,
        "present": int(canaries.present.sum()),
        "canary_rounds": trial.uses,
        "epsilon": trial.epsilon,
        "epsilon_lower_bound": bound,
        "confidence": request.confidence,
        "guesses": power.rule.guesses,
        "right": right,
        "violated": bound > trial.epsilon,
        "expected_lower_bound": power.sound,
        "expected_without_noise": power.without_noise,
        "can_tell": power.without_noise > trial.epsilon,
    }


def _trial(claimed: Experiment, request: AuditRequest, built: BuiltRun, uses: int) -> Trial:
    delta = request.delta or claimed.privacy.delta
    at_delta = claimed.privacy.model_copy(update={"delta": delta})
    epsilon = epsilon_after(claimed.model_copy(update={"privacy": at_delta}), _rounds(claimed))
    assert epsilon is not None
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
        "epsilon_estimate": epsilon_between(known, fit(there), trial.delta),
        "epsilon_estimate_interval": list(interval),
        "null": {"mean": known.mean, "deviation": known.deviation},
        "cosines": {
            "present": [round(float(value), 6) for value in there],
            "absent": [round(float(value), 6) for value in away],
        },
    }
