"""From `[stability]` and `[federation.buffered]` to the conditions of a run."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from pathlib import Path

from fedpeft.core.errors import ConfigError
from fedpeft.data.drawn import Sizes
from fedpeft.data.examples import Federated
from fedpeft.experiment.experiment import Experiment, StabilityConfig
from fedpeft.rounds.attendance import Buffering
from fedpeft.server.availability import Conditions
from fedpeft.server.clock import Costs, Stragglers
from fedpeft.server.sampling import fixed_cohort
from fedpeft.server.traces import PHONES, Trace, phones, read_trace
from fedpeft.tuning.tuned import TunedModel

__all__ = [
    "asked_clients",
    "make_buffering",
    "make_conditions",
    "planned_turns",
    "resolve_stability",
]


def resolve_stability(experiment: Experiment, options: Mapping[str, float]) -> dict[str, object]:
    """Make the defaults of `[federation]` and `[stability]` explicit.

    Args:
      experiment: checked.
      options: of the algorithm, complete.

    Returns:
      both tables by name; buffered training always has a `[stability]` table.

    Raises:
      ConfigError: if the trace's file is not the one that the experiment began with.
    """
    federation, stability = experiment.federation, experiment.stability
    changes: dict[str, object] = {"options": dict(options)}
    if federation.mode == "buffered":
        buffered, cohort = federation.buffered, federation.clients_per_round
        sizes = {
            "size": buffered.size or cohort,
            "concurrency": buffered.concurrency or cohort,
        }
        changes["buffered"] = buffered.model_copy(update=sizes)
        stability = stability or StabilityConfig()
    resolved: dict[str, object] = {"federation": federation.model_copy(update=changes)}
    if stability is not None:
        resolved["stability"] = stability.model_copy(update=_trace_file(stability))
    return resolved


def _trace_file(stability: StabilityConfig) -> dict[str, object]:
    """Name a trace's file wherever a command is called from, and its content."""
    if stability.trace in (None, PHONES):
        return {}
    file = Path(str(stability.trace)).expanduser().resolve()
    if not file.is_file():
        return {}  # a plan needs no trace; a run says that it is missing
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    if stability.trace_sha256 not in (None, digest):
        raise ConfigError(
            f"stability.trace: {file} has changed: its SHA-256 is {digest}, the experiment began "
            f"with {stability.trace_sha256}. Put the file back, or leave stability.trace_sha256 out"
        )
    return {"trace": str(file), "trace_sha256": digest}


def asked_clients(experiment: Experiment, num_clients: int) -> int:
    """Return how many clients a synchronous round asks; more than it uses with over-selection."""
    cohort, stability = experiment.federation.clients_per_round, experiment.stability
    factor = stability.over_selection if stability else 1.0
    return min(num_clients, math.ceil(cohort * factor - 1e-9))


def planned_turns(experiment: Experiment) -> tuple[int, int]:
    """Return how many replies a round of a resolved experiment uses, and how many clients it asks.

    Nobody fails in a plan.
    """
    federation = experiment.federation
    if federation.mode == "buffered":
        size = federation.buffered.size or federation.clients_per_round
        return size, size
    clients = experiment.data.partition.clients or federation.clients_per_round
    return federation.clients_per_round, asked_clients(experiment, clients)


def make_conditions(
    experiment: Experiment, tuned: TunedModel, data: Federated
) -> Conditions | None:
    """Build the conditions of a resolved experiment; None without a `[stability]` table.

    Raises:
      ConfigError: if the trace cannot be read.
    """
    from fedpeft.experiment import tables
    from fedpeft.plan.plan import TYPICAL_NOTES, wire_bytes

    stability = experiment.stability
    if stability is None:
        return None
    epochs = experiment.client.epochs
    up = tables.make_stages(experiment.wire.up, "wire.up")
    return Conditions(
        seed=experiment.seed,
        examples=Sizes(data.clients, epochs),
        bytes_up=wire_bytes(tuned, up, TYPICAL_NOTES),
        costs=Costs(
            rate=stability.examples_per_second,
            down=stability.bytes_down_per_second,
            up=stability.bytes_up_per_second,
            speed_spread=stability.speed_spread,
            link_spread=stability.link_spread,
            stragglers=Stragglers(stability.stragglers, stability.straggler_shape),
        ),
        dropout=stability.dropout,
        deadline=stability.deadline,
        wanted=experiment.federation.clients_per_round if stability.over_selection > 1 else None,
        trace=_trace(stability, tuple(data.clients), experiment.seed),
        from_available=stability.choose_from == "available",
    )


def _trace(stability: StabilityConfig, clients: tuple[str, ...], seed: int) -> Trace | None:
    if stability.trace is None:
        return None
    if stability.trace == PHONES:
        return phones(clients, seed=seed)
    return read_trace(Path(stability.trace), clients, stability.trace_period)


def make_buffering(experiment: Experiment) -> Buffering | None:
    """Build the options of buffered training of a resolved experiment; None where synchronous."""
    federation = experiment.federation
    if federation.mode != "buffered":
        return None
    options, cohort = federation.buffered, federation.clients_per_round
    return Buffering(
        draw=lambda clients, count, number: fixed_cohort(
            clients, count, seed=experiment.seed, round=number
        ),
        size=options.size or cohort,
        concurrency=options.concurrency or cohort,
        exponent=options.exponent,
        max_staleness=options.max_staleness,
    )
