"""Who takes part in a round: the call that a round settles.

    gather    the clients that a cohort is drawn from, and when the round starts
    attend    of the cohort: whose turns count, who fails and why, how long the round takes

Without conditions everybody is there, everybody answers, and no clock runs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from fedpeft.client.turns import Memory
from fedpeft.core.errors import RoundError
from fedpeft.rounds.job import Failure, Job
from fedpeft.server.availability import Conditions, available, close_round, opening, outcome
from fedpeft.server.clock import clock_memory, read_clock

__all__ = ["Buffering", "Call", "Gathered", "attend", "gather", "simulated"]


@dataclass(frozen=True)
class Buffering:
    """Options of buffered asynchronous training.

    Attributes:
      size: replies that make a round, K.
      concurrency: turns that are under way at once.
      exponent: an update that is s rounds old counts (1 + s)**-exponent.
      max_staleness: older updates are not used; None: all are.
    """

    size: int
    concurrency: int
    exponent: float = 0.5
    max_staleness: int | None = None


@dataclass(frozen=True)
class Call:
    """One round's turns, before they are taken.

    Attributes:
      job: the turns that count; its cohort may be smaller than the call's.
      cohort: all clients of the round, in order; each once.
      absent: those of the cohort whose reply will not come, or not be used.
      bytes_down: as encoded, all clients that were asked.
      scales: client -> factor of its update, where it is not 1.
      memory: parts of the server's memory that the call changes.
      simulation: what the record says of simulated time.
    """

    job: Job
    cohort: tuple[str, ...]
    absent: tuple[Failure, ...] = ()
    bytes_down: int = 0
    scales: Mapping[str, float] = field(default_factory=dict)
    memory: Memory = field(default_factory=dict)
    simulation: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Gathered:
    """The clients that a cohort is drawn from, and when.

    Attributes:
      clients: in the engine's order.
      before: when the round before ended, in simulated seconds.
      start: when the cohort is drawn; later than `before` if the server waited.
    """

    clients: Sequence[str]
    before: float = 0.0
    start: float = 0.0


def gather(
    conditions: Conditions | None, clients: Sequence[str], memory: Memory, least: int
) -> Gathered:
    """Return the clients that a cohort is drawn from, and the simulated time of the draw.

    Where cohorts are drawn from available clients, the server waits until enough are there.

    Args:
      conditions: None: all clients, at time 0.
      clients: all.
      memory: of the server; holds its clock.
      least: how many clients to wait for, at least 1.

    Raises:
      RoundError: if so many clients are never available at once again.
    """
    if conditions is None:
        return Gathered(clients)
    now = read_clock(memory)
    if not conditions.from_available:
        return Gathered(clients, now, now)
    start = opening(conditions, clients, max(1, least), now)
    if start is None:
        raise RoundError(
            f"from simulated second {now:.0f} on, no moment has {max(1, least)} of the clients "
            "available (federation.min_replies). Lower that, give stability.trace_period, or a "
            "longer stability.trace"
        )
    return Gathered(available(conditions, clients, start), now, start)


def attend(conditions: Conditions | None, job: Job, gathered: Gathered) -> Call:
    """Decide how the turns of a synchronous round end, before they are taken.

    Args:
      conditions: None: all turns end well.
      job: asks the whole cohort.
      gathered: says when the round starts.

    Returns:
      the call; its job asks only those whose replies count.
    """
    if conditions is None:
        everything = sum(len(job.broadcast[client]) for client in job.cohort)
        return Call(job, job.cohort, bytes_down=everything)
    start = gathered.start
    asked = [
        outcome(conditions, client, job.round, start=start, bytes_down=len(job.broadcast[client]))
        for client in job.cohort
    ]
    closed, end = close_round(asked, conditions.wanted, start=start)
    reached = [each.client for each in closed if each.end > start]
    kept = tuple(each.client for each in closed if not each.reason)
    return Call(
        dataclasses.replace(job, cohort=kept),
        job.cohort,
        tuple(Failure(each.client, each.reason) for each in closed if each.reason),
        bytes_down=sum(len(job.broadcast[client]) for client in reached),
        memory=clock_memory(end),
        simulation=simulated(gathered.before, end),
    )


def simulated(before: float, end: float) -> dict[str, object]:
    """Name what a record says of simulated time: of the round, and since the run began."""
    return {"simulated_seconds": round(end - before, 6), "simulated_time": round(end, 6)}
