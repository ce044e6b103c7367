"""From `[stability]` and `[federation.buffered]` to the conditions of a run."""

from __future__ import annotations

from pathlib import Path

from fedpeft.data.drawn import Sizes
from fedpeft.data.examples import Federated
from fedpeft.experiment.experiment import StabilityConfig
from fedpeft.experiment.resolve import Resolved
from fedpeft.rounds.attendance import Buffering
from fedpeft.rounds.sizes import TYPICAL_NOTES, wire_bytes
from fedpeft.server.availability import Conditions
from fedpeft.server.clock import Costs, Stragglers
from fedpeft.server.traces import PHONES, Trace, phones, read_trace
from fedpeft.tuning.tuned import TunedModel

__all__ = ["make_buffering", "make_conditions"]


def make_conditions(resolved: Resolved, tuned: TunedModel, data: Federated) -> Conditions | None:
    """Build the conditions of a run; None without a `[stability]` table.

    Raises:
      ConfigError: if the trace cannot be read.
    """
    experiment = resolved.experiment
    stability = experiment.stability
    if stability is None:
        return None
    epochs = experiment.client.epochs
    return Conditions(
        seed=experiment.seed,
        examples=Sizes(data.clients, epochs),
        bytes_up=wire_bytes(tuned, resolved.up, TYPICAL_NOTES),
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
        enough=experiment.federation.clients_per_round if stability.over_selection > 1 else None,
        trace=_trace(stability, tuple(data.clients), experiment.seed),
        from_available=stability.choose_from == "available",
    )


def _trace(stability: StabilityConfig, clients: tuple[str, ...], seed: int) -> Trace | None:
    if stability.trace is None:
        return None
    if stability.trace == PHONES:
        return phones(clients, seed=seed)
    return read_trace(Path(stability.trace), clients, stability.trace_period)


def make_buffering(resolved: Resolved) -> Buffering | None:
    """Build the options of buffered training; None where rounds are synchronous."""
    federation = resolved.experiment.federation
    if federation.mode != "buffered":
        return None
    options, cohort = federation.buffered, federation.clients_per_round
    return Buffering(
        size=options.size or cohort,
        concurrency=options.concurrency or cohort,
        exponent=options.exponent,
        max_staleness=options.max_staleness,
    )
