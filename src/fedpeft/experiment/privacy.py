"""`[privacy]`: what is refused, how much noise, what it costs, and what the outputs say of it.

    epsilon given           the noise multiplier is calibrated; the run stops before exceeding it
    noise_multiplier given  epsilon is what comes out

Records of a private run hold nothing that was not noised. True figures go to `diagnostics.jsonl`,
whose first line says what it is.
"""

from __future__ import annotations

import functools
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from fedpeft.client.private import GradientPrivacy
from fedpeft.core.errors import PrivacyError
from fedpeft.core.privacy import author_deviation, gaussian_deviation
from fedpeft.experiment.check import num_clients
from fedpeft.experiment.experiment import Experiment
from fedpeft.rounds.round import RoundRecord
from fedpeft.runs.files import write_text
from fedpeft.server.sampling import fixed_cohort
from fedpeft.tuning.tuned import TunedModel
from fedpeft.wire import privacy
from fedpeft.wire.accounting import Mechanism, calibrate, epsilon_of, rdp_epsilon_of
from fedpeft.wire.privacy import Guard
from fedpeft.wire.stages import Stage

__all__ = [
    "NOT_PRIVATE",
    "SIMULATION",
    "client_epsilons",
    "cut_diagnostics",
    "diagnostics_of",
    "epsilon_after",
    "gradient_privacy",
    "is_private",
    "may_go_on",
    "privacy_figures",
    "private_record",
    "private_stages",
    "private_summary",
    "refuse_model",
    "resolve_privacy",
]

SIMULATION = "simulation: not private"
"""What every output says where the noise comes from the run's seed."""

NOT_PRIVATE = {"note": "not private: true figures, for whoever runs a simulation; do not publish"}
"""The first line of `diagnostics.jsonl`."""


def is_private(experiment: Experiment) -> bool:
    """Whether the mode bounds and noises what leaves a client."""
    return experiment.privacy.mode in ("central", "local", "example")


def resolve_privacy(experiment: Experiment) -> Experiment:
    """Make the noise multiplier explicit.

    Raises:
      PrivacyError: if no noise reaches the target.
    """
    chosen = experiment.privacy
    if not is_private(experiment) or chosen.noise_multiplier is not None or not chosen.epsilon:
        return experiment
    uses = _uses(experiment, experiment.federation.rounds)
    multiplier = calibrate(_mechanism(experiment, 0.0), uses, chosen.delta, chosen.epsilon)
    filled = chosen.model_copy(update={"noise_multiplier": multiplier})
    return experiment.model_copy(update={"privacy": filled})


def gradient_privacy(experiment: Experiment) -> GradientPrivacy | None:
    """Say how a resolved experiment's clients clip and noise their gradients; None: not at all."""
    chosen = experiment.privacy
    if chosen.mode == "example":
        multiplier = chosen.noise_multiplier or 0.0
        deviation = multiplier * chosen.clip_norm if multiplier else 0.0
        return GradientPrivacy("example", chosen.clip_norm, deviation, chosen.reproducible_noise)
    if chosen.mode == "paper":
        return GradientPrivacy(chosen.variant, chosen.clip_norm, _paper_deviation(experiment))
    return None


def refuse_model(experiment: Experiment, tuned: TunedModel) -> None:
    """Refuse a model that sends what no stage protects.

    Raises:
      PrivacyError: for travelling buffers or batch statistics.
    """
    if is_private(experiment) and (tuned.buffer_spec.names or tuned.trains_statistics):
        raise PrivacyError(
            f"privacy.mode: found {experiment.privacy.mode!r} with BatchNorm that trains; its "
            "statistics mix the examples of a batch and travel outside clip and noise. Use another "
            "tuning.method, or a model with layer normalisation"
        )


def private_stages(experiment: Experiment) -> tuple[Stage, ...]:
    """Return the privacy stage of a resolved experiment, the first of the chain; () without one."""
    chosen = experiment.privacy
    guard = Guard(chosen.clip_norm, chosen.noise_multiplier or 0.0, chosen.reproducible_noise)
    build = _STAGES.get(chosen.mode)
    return (build(guard),) if build else ()


_STAGES: Mapping[str, Callable[[Guard], Stage]] = {
    "central": privacy.central,
    "local": privacy.local,
    "example": privacy.example,
}


def epsilon_after(experiment: Experiment, rounds: int) -> float | None:
    """Return what a resolved experiment has spent after so many rounds; None without a guarantee.

    None also stands for an infinite epsilon (no noise).
    """
    if not is_private(experiment):
        return None
    chosen = experiment.privacy
    mechanism = _mechanism(experiment, chosen.noise_multiplier or 0.0)
    spent = epsilon_of(mechanism, _uses(experiment, rounds), chosen.delta)
    return None if math.isinf(spent) else spent


def may_go_on(experiment: Experiment, rounds: int) -> bool:
    """Whether one more round after `rounds` stays within the budget."""
    budget = experiment.privacy.epsilon
    if not is_private(experiment) or budget is None:
        return True
    spent = epsilon_after(experiment, rounds + 1)
    return spent is not None and spent <= budget * (1 + 1e-9)


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


def _mechanism(experiment: Experiment, multiplier: float) -> Mechanism:
    federation, clients = experiment.federation, num_clients(experiment)
    amplified = federation.sampling == "poisson" and clients is not None
    probability = federation.clients_per_round / clients if amplified and clients else None
    distance = 2.0 if experiment.privacy.mode == "local" else 1.0
    return Mechanism(multiplier, probability, distance)


def _uses(experiment: Experiment, rounds: int) -> int:
    """Return how often the mechanism ran on one client's data, for the busiest client.

    Without amplification the schedule of cohorts is public and depends on seed and number of
    clients alone, so its busiest client is known; where that number is not, each round counts.
    At example level every epoch counts: an example is in one of its batches.
    """
    federation, clients = experiment.federation, num_clients(experiment)
    epochs = experiment.client.epochs if experiment.privacy.mode == "example" else 1
    if federation.sampling == "poisson" or clients is None:
        return rounds * epochs
    asked = _busiest(experiment.seed, clients, federation.clients_per_round, rounds)
    return asked * epochs


@functools.lru_cache(maxsize=1024)
def _busiest(seed: int, clients: int, asked: int, rounds: int) -> int:
    counts = dict.fromkeys(map(str, range(clients)), 0)
    for number in range(1, rounds + 1):
        for client in fixed_cohort(tuple(counts), asked, seed=seed, round=number):
            counts[client] += 1
    return max(counts.values())


def _noise_deviation(experiment: Experiment) -> float:
    """Standard deviation of a coordinate's noise, on what it is added to.

    That is the mean of updates (central), one update (local) or a batch's mean gradient (others).
    """
    chosen, batch_size = experiment.privacy, experiment.client.batch_size
    if chosen.mode == "paper":
        divisor = 1 if chosen.variant == "author" else batch_size
        return _paper_deviation(experiment) / divisor
    multiplier = chosen.noise_multiplier or 0.0
    deviation = multiplier * chosen.clip_norm if multiplier else 0.0
    divisors = {"central": experiment.federation.clients_per_round, "example": batch_size}
    return deviation / divisors.get(chosen.mode, 1)


def _paper_deviation(experiment: Experiment) -> float:
    chosen = experiment.privacy
    epsilon = chosen.epsilon or 5.0
    if chosen.variant == "author":
        return author_deviation(epsilon, chosen.delta, chosen.clip_norm)
    return gaussian_deviation(epsilon, chosen.delta, 2 * chosen.clip_norm)


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
