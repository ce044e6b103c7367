"""`fedpeft audit`: is the promised epsilon kept by the rounds that really run?

    accountant   at most this was lost                     from the claimed noise and sampling
    estimate     about this was lost to the canaries       Andrew et al.
    lower bound  more than this was lost, at a confidence  Steinke et al.

The experiment's own rounds run, with canary clients added; `leave_out_noise` runs them without the
noise that the accountant counts on: the control that an audit can fail.
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
from fedpeft.rounds.client_half import ClientHalf
from fedpeft.runs.files import write_json
from fedpeft.studies.audit.canaries import (
    Canaries,
    CanaryEngine,
    Sightings,
    canary_trainer,
    draw_canaries,
    watch_rounds,
)
from fedpeft.studies.audit.statistics import (
    Evidence,
    Floats,
    Normal,
    Power,
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
    """How to audit.

    Attributes:
      canaries: how many, present or absent by a coin each, at least 20; None: 500, or a tenth of
        the delta's parameters where that is less, because canaries blur one another.
      confidence: of the lower bound, in (0, 1).
      leave_out_noise: run without the noise that is claimed.
      train: ordinary clients train; else they send zero updates, which epsilon holds for too.
      delta: at which epsilon is compared; None: `privacy.delta`.
    """

    canaries: int | None = None
    confidence: float = 0.95
    leave_out_noise: bool = False
    train: bool = True
    delta: float | None = None


def audit(
    experiment: Experiment, request: AuditRequest, on_round: OnRound = lambda number, rounds: None
) -> dict[str, Any]:
    """Run an experiment's rounds with canaries and say what they show.

    Args:
      experiment: checked; of mode `central` or `local`.
      request: how.
      on_round: called after each round with its number and how many there are.

    Returns:
      what `audit.json` holds.

    Raises:
      PrivacyError: if the experiment promises no epsilon for whole clients.
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
        engine = CanaryEngine(
            built.engine, _half(built, canaries), canaries, idle=not request.train
        )
        start = (built.start, built.plan)
        seen = watch_rounds(start, engine, canaries, rounds, lambda n: on_round(n, rounds))
    finally:
        built.engine.close()
    figures = _figures(claimed, request, built, canaries, seen)
    return {**figures, "rounds": rounds, "seconds": round(time.perf_counter() - began, 3)}


def audit_seeds(
    experiment: Experiment,
    request: AuditRequest,
    count: int,
    on_seed: Callable[[int, int], None] = lambda done, count: None,
) -> dict[str, Any]:
    """Audit over the seeds seed, seed + 1, ..., and count how often the lower bound is too high.

    Returns:
      what `audit.json` holds: the audits and their count.
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
    picture = draw_seeds(found) if "runs" in found else draw_audit(found)
    (out / "audit.svg").write_text(picture.svg, "utf-8")
    (out / "audit.png").write_bytes(picture.png)
    write_json(out / "audit.json", found)


def _check(claimed: Experiment, request: AuditRequest) -> None:
    """Refuse what makes no promise that canary clients could test."""
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
            "privacy.noise_multiplier: found 0, which promises no epsilon. Give the noise that is "
            "claimed; --leave-out-noise then runs without it"
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
    None: "it promises no epsilon that could be compared",
    "example": "its epsilon is about single examples of a client, and canary clients are whole "
    "clients",
}


def _rounds(claimed: Experiment) -> int:
    """Return how many rounds a run would have before its budget ends it."""
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
    """Return the experiment whose rounds run."""
    changed: dict[str, object] = {}
    if request.leave_out_noise:
        without = {"noise_multiplier": 0.0, "epsilon": None}
        changed["privacy"] = claimed.privacy.model_copy(update=without)
    if not request.train:
        changed["engine"] = claimed.engine.model_copy(update={"workers": 1})
    return claimed.model_copy(update=changed)


def _count(request: AuditRequest, built: BuiltRun) -> int:
    return request.canaries or max(20, min(500, built.plan.spec.num_params // 10))


def _half(built: BuiltRun, canaries: Canaries) -> ClientHalf:
    return ClientHalf(
        canary_trainer(canaries, built.plan.spec.num_params),
        built.plan.up,
        built.plan.down,
        built.plan.spec,
        private=True,
    )


def _figures(
    claimed: Experiment,
    request: AuditRequest,
    built: BuiltRun,
    canaries: Canaries,
    seen: Sightings,
) -> dict[str, Any]:
    trial = _trial(claimed, request, built, len(seen.seen_TK))
    power = choose_rule(trial)
    scores = log_ratios(seen.seen_TK, trial.mechanism)
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
        "parameters": built.plan.spec.num_params,
        "canaries": trial.canaries,
        "present": int(canaries.present.sum()),
        "canary_rounds": trial.uses,
        "epsilon": trial.epsilon,
        **_estimate(canaries, seen, trial, built.plan.spec.num_params),
        "epsilon_lower_bound": bound,
        "confidence": request.confidence,
        "guesses": power.rule.guesses,
        "right": right,
        "violated": bound > trial.epsilon,
        **_expected(power, trial),
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
    canaries: Canaries, seen: Sightings, trial: Trial, dimension: int
) -> dict[str, object]:
    """Return Andrew et al.'s estimate, and the cosines that it comes from.

    Of absent canaries the cosine is known to have mean 0 and variance 1/d (central); of those that
    sent the opposite it is fitted too (local).
    """
    there = seen.cosines_K[canaries.present]
    away = seen.cosines_K[~canaries.present]
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


def _expected(power: Power, trial: Trial) -> dict[str, object]:
    """Return what could be expected before the run, and whether that is enough to tell."""
    return {
        "expected_lower_bound": power.sound,
        "expected_without_noise": power.without_noise,
        "can_tell": power.without_noise > trial.epsilon,
    }
