"""`fedpeft audit`: do the rounds that really run keep the claimed epsilon?

    accountant   epsilon is at most this                    from the claimed noise and sampling
    estimate     epsilon is about this, from the canaries   Andrew et al.
    lower bound  epsilon is above this, at a confidence     Steinke et al.
    checks       noise, clip and denominator are as claimed, by exact tests of what is released

The experiment's own rounds run, with canary clients added; then rounds of probes, whose updates are
designed to show one fault each. With `leave_out_noise` they run without the noise that the
accountant assumes: the negative control, which shows that an audit can fail.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from fedpeft.build.model import fit_privacy, load_run_data
from fedpeft.build.run import build_run
from fedpeft.core.errors import PrivacyError
from fedpeft.experiment.epsilon import is_settled, may_go_on
from fedpeft.experiment.experiment import Experiment
from fedpeft.experiment.privacy import PRIVACY_MODES
from fedpeft.experiment.resolve import resolve
from fedpeft.pictures.style import write_picture
from fedpeft.runs.files import write_json
from fedpeft.studies.audit.canary_figures import (
    NO_CANARIES,
    AuditRequest,
    claimed_epsilon,
    run_canaries,
)
from fedpeft.studies.audit.mechanism import check_mechanism
from fedpeft.studies.audit.statistics import allowed_failures

__all__ = ["AuditRequest", "audit", "audit_seeds", "write_audit"]

OnRound = Callable[[int, int], None]


def audit(
    experiment: Experiment, request: AuditRequest, on_round: OnRound = lambda number, rounds: None
) -> dict[str, Any]:
    """Run an experiment's rounds with canaries, and check its mechanism with probes.

    Args:
      experiment: checked; its privacy mode is `central`, `local` or `example`.
      request: the options.
      on_round: called after each round with its number and the number of rounds.

    Returns:
      The content of `audit.json`.

    Raises:
      PrivacyError: if the experiment claims no epsilon.
      RoundError: if a round fails.
    """
    began = time.perf_counter()
    resolved = resolve(experiment)
    if not is_settled(resolved.experiment):
        resolved = fit_privacy(resolved, load_run_data(resolved))
    claimed = resolved.experiment
    _check(claimed, request)
    rounds = _rounds(claimed)
    running = replace(resolved, experiment=_as_run(claimed, request))
    built = build_run(running)
    try:
        by_canaries = NO_CANARIES
        if PRIVACY_MODES[claimed.privacy.mode].unit == "client":
            by_canaries = run_canaries(
                claimed, request, built, rounds, lambda n: on_round(n, rounds)
            )
        checks = check_mechanism(claimed, running, built)
    finally:
        built.engine.close()
    delta, epsilon = claimed_epsilon(claimed, request, rounds)
    return {
        "mode": claimed.privacy.mode,
        "sampling": claimed.federation.sampling,
        "seed": claimed.seed,
        "delta": delta,
        "noise_multiplier": claimed.privacy.noise_multiplier,
        "noise_left_out": request.leave_out_noise,
        "trained": request.train,
        "epsilon": epsilon,
        "confidence": request.confidence,
        **by_canaries,
        **checks,
        "parameters": built.plan.spec.num_params,
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
        "exceeded": sum(bool(run["violated"]) for run in runs),
        "with_faults": sum(bool(run["faults"]) for run in runs),
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
    """Check that the experiment claims an epsilon, and the options of the audit."""
    name = claimed.privacy.mode
    unit = PRIVACY_MODES[name].unit
    if unit is None:
        allowed = ", ".join(repr(n) for n, mode in PRIVACY_MODES.items() if mode.unit is not None)
        raise PrivacyError(
            f"privacy.mode: found {name!r}; it has no epsilon to compare with. Allowed are "
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
