"""What a run's records, summary and diagnostics say of its privacy."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedpeft.experiment.epsilon import (
    _mechanism,
    _uses,
    epsilon_after,
    is_private,
    may_go_on,
    paper_deviation,
)
from fedpeft.experiment.experiment import Experiment
from fedpeft.rounds.round import RoundRecord
from fedpeft.runs.files import write_text
from fedpeft.wire.accounting import epsilon_of, rdp_epsilon_of

__all__ = [
    "NOT_PRIVATE",
    "SIMULATION",
    "client_epsilons",
    "cut_diagnostics",
    "diagnostics_of",
    "privacy_figures",
    "privacy_words",
    "private_record",
    "private_summary",
]


SIMULATION = "simulation: not private"
"""What every output says where the noise comes from the run's seed."""


NOT_PRIVATE = {"note": "not private: true figures, for whoever runs a simulation; do not publish"}
"""The first line of `diagnostics.jsonl`."""


def privacy_figures(experiment: Experiment) -> dict[str, object]:
    """Return what `plan` says of a resolved experiment's privacy."""
    if experiment.privacy.mode == "paper":
        return {"epsilon": None, "privacy": _said(experiment)}
    if not is_private(experiment):
        return {"epsilon": None}
    rounds = experiment.federation.rounds
    while rounds and not may_go_on(experiment, rounds - 1):
        rounds -= 1
    return {"epsilon": epsilon_after(experiment, rounds), "privacy": _said(experiment)}


def private_record(
    experiment: Experiment, record: RoundRecord, planned: tuple[int, int] | None
) -> dict[str, object]:
    """Return the keys that privacy adds to, or replaces in, a line of `rounds.jsonl`.

    Args:
      experiment: resolved.
      record: of the round.
      planned: bytes (down, up) of one turn where cohorts are secret, else None.
    """
    if experiment.privacy.mode == "none":
        return {}
    added: dict[str, object] = {
        "epsilon": epsilon_after(experiment, record.round),
        "noise_deviation": _noise_deviation(experiment),
        "privacy": _note(experiment),
    }
    if planned is None:
        return added
    expected = float(experiment.federation.clients_per_round)
    down, up = (round(expected * each) for each in planned)
    return {"cohort": expected, "failures": {}, "bytes_down": down, "bytes_up": up, **added}


def private_summary(experiment: Experiment, rounds: int) -> dict[str, object]:
    """Return what the summary says of privacy after so many rounds."""
    if experiment.privacy.mode == "paper":
        return {"epsilon": None, "privacy": _said(experiment)}
    if not is_private(experiment):
        return {"epsilon": None}
    chosen = experiment.privacy
    mechanism = _mechanism(experiment, chosen.noise_multiplier or 0.0)
    check = rdp_epsilon_of(mechanism, _uses(experiment, rounds), chosen.delta)
    return {
        "epsilon": epsilon_after(experiment, rounds),
        "epsilon_rdp": None if math.isinf(check) else check,
        "privacy": _said(experiment),
    }


def client_epsilons(
    experiment: Experiment, records: Iterable[Mapping[str, object]]
) -> dict[str, object]:
    """Return `epsilon_clients`: what each client that was asked has spent, by its name.

    Where noise is added on the client (`local`, `example`), only the rounds in which it was asked
    cost it anything. The schedule of cohorts is public, so these figures tell nothing of any data;
    a client that never was asked has spent 0 and is not listed. {} in other modes, where the whole
    run counts or cohorts are secret, and without noise.
    """
    chosen = experiment.privacy
    if chosen.mode not in ("local", "example") or not chosen.noise_multiplier:
        return {}
    asked: Counter[str] = Counter()
    for record in records:
        cohort = record["cohort"]
        assert isinstance(cohort, Sequence), "cohorts are public where sampling is fixed"
        asked.update(str(client) for client in cohort)
    epochs = experiment.client.epochs if chosen.mode == "example" else 1
    mechanism = _mechanism(experiment, chosen.noise_multiplier)
    spent = {
        client: epsilon_of(mechanism, rounds * epochs, chosen.delta)
        for client, rounds in sorted(asked.items(), key=lambda item: (-item[1], item[0]))
    }
    return {"epsilon_clients": spent}


def diagnostics_of(
    experiment: Experiment, record: RoundRecord, num_params: int
) -> dict[str, object]:
    """Return the true figures of one round, for `diagnostics.jsonl`.

    `noise_to_signal` is the expected norm of the noise over the norm of the mean before it.
    """
    bound = experiment.privacy.clip_norm * (1 - 1e-4)
    clipped = sum(norm >= bound for norm in record.norms)
    noise = _noise_deviation(experiment) * math.sqrt(num_params)
    central = experiment.privacy.mode == "central"
    return {
        "round": record.round,
        "cohort": list(record.cohort),
        "failures": dict(record.failures),
        "clip_fraction": clipped / len(record.norms) if record.norms and central else None,
        "signal_norm": record.signal_norm,
        "noise_to_signal": noise / record.signal_norm if record.signal_norm and central else None,
        "bytes_down": record.bytes_down,
        "bytes_up": record.bytes_up,
    }


def cut_diagnostics(file: Path, rounds: int) -> None:
    """Write the first line, and keep what is there of the first `rounds` rounds."""
    lines = file.read_text("utf-8").splitlines() if file.exists() else []
    whole = [line for line in lines[1:] if line.endswith("}")]
    kept = [line for line in whole if json.loads(line)["round"] <= rounds]
    write_text(file, "\n".join([json.dumps(NOT_PRIVATE), *kept]) + "\n")


def _noise_deviation(experiment: Experiment) -> float:
    """Standard deviation of a coordinate's noise, on what it is added to.

    That is the mean of updates (central), one update (local) or a batch's mean gradient (others).
    """
    chosen, batch_size = experiment.privacy, experiment.client.batch_size
    if chosen.mode == "paper":
        divisor = 1 if chosen.variant == "author" else batch_size
        return paper_deviation(experiment) / divisor
    multiplier = chosen.noise_multiplier or 0.0
    deviation = multiplier * chosen.clip_norm if multiplier else 0.0
    divisors = {"central": experiment.federation.clients_per_round, "example": batch_size}
    return deviation / divisors.get(chosen.mode, 1)


def _said(experiment: Experiment) -> Mapping[str, object]:
    chosen = experiment.privacy
    return {
        "mode": chosen.mode,
        "delta": chosen.delta,
        "clip_norm": chosen.clip_norm if math.isfinite(chosen.clip_norm) else None,
        "noise_multiplier": chosen.noise_multiplier,
        "noise_deviation": _noise_deviation(experiment),
        "sampling": experiment.federation.sampling,
        "note": _note(experiment),
    }


def _note(experiment: Experiment) -> str:
    if experiment.privacy.mode == "paper":
        said = f"the paper's mechanism, variant {experiment.privacy.variant}: guarantees nothing"
        return f"{SIMULATION}; {said}" if experiment.privacy.reproducible_noise else said
    if experiment.privacy.reproducible_noise:
        return SIMULATION
    level = "example level" if experiment.privacy.mode == "example" else "client level"
    if not experiment.privacy.noise_multiplier:
        return "no noise: not private"
    return f"{experiment.privacy.mode}, {level}"


def privacy_words(figures: Mapping[str, Any]) -> str:
    """Say mode, epsilon and noise of a plan or a summary; `none` without privacy."""
    said = figures.get("privacy")
    if not said:
        return "none"
    epsilon = figures["epsilon"]
    spent = f"epsilon {epsilon:.4g} at delta {said['delta']:g}" if epsilon else "no guarantee"
    return f"{said['note']}: {spent}, noise deviation {said['noise_deviation']:.4g} a coordinate"
