"""Attendance: which clients take part in a round, and how their turns will end.

    gather    the clients from which a cohort is drawn, and when the round starts
    attend    the turns of the cohort that count, the failures and their reasons, the round's length

Without conditions all clients are available, all reply, and no clock runs.
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


@dataclass(frozen=True)
class Buffering:
    """The options of buffered asynchronous training.

    Attributes:
      size: number of replies after which the server takes a step, K.
      concurrency: number of turns that are under way at once.
      exponent: an update that is s rounds old has the weight (1 + s)**-exponent.
      max_staleness: age in rounds beyond which updates are not used; None: all are used.
    """

    size: int
    concurrency: int
    exponent: float = 0.5
    max_staleness: int | None = None


@dataclass(frozen=True)
class Call:
    """The turns of one round, before they run.

    Attributes:
      job: the turns whose replies count; its cohort may be smaller than the call's.
      cohort: all clients of the round, in order, each once.
      absent: the clients of the cohort without a usable reply, with the reasons.
      bytes_down: bytes of the encoded broadcasts to all clients that are to get one.
      messages_down: number of these clients.
      scales: client -> factor of its update, where the factor is not 1.
      memory: parts of the server's memory that the call changes.
      simulation: entries of the record about simulated time.
    """

    job: Job
    cohort: tuple[str, ...]
    absent: tuple[Failure, ...] = ()
    bytes_down: int = 0
    messages_down: int = 0
    scales: Mapping[str, float] = field(default_factory=dict)
    memory: Memory = field(default_factory=dict)
    simulation: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Gathered:
    """The clients from which a cohort is drawn, and the time of the draw.

    Attributes:
      clients: the clients, in the engine's order.
      before: end of the previous round, in simulated seconds.
      start: time of the draw; later than `before` if the server waited for clients.
    """

    clients: Sequence[str]
    before: float = 0.0
    start: float = 0.0


def gather(
    conditions: Conditions | None, clients: Sequence[str], memory: Memory, least: int
) -> Gathered:
    """Return the clients from which a cohort is drawn, and the simulated time of the draw.

    Where cohorts are drawn from available clients, the server waits until enough are available.

    Args:
      conditions: conditions of the run; None: all clients, at time 0.
      clients: all clients.
      memory: memory of the server, which holds its clock.
      least: number of clients to wait for; 0 counts as 1.

    Raises:
      RoundError: if that many clients are never available at the same time again.
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
    """Decide how the turns of a synchronous round end, before they run.

    Args:
      conditions: conditions of the run; None: all turns end in a reply.
      job: the job for the whole cohort.
      gathered: the start of the round.

    Returns:
      the call; its job has only the clients whose replies count.
    """
    if conditions is None:
        everything = sum(len(job.broadcast[client]) for client in job.cohort)
        return Call(job, job.cohort, bytes_down=everything, messages_down=len(job.cohort))
    start = gathered.start
    outcomes = [
        outcome(conditions, client, job.round, start=start, bytes_down=len(job.broadcast[client]))
        for client in job.cohort
    ]
    closed, end = close_round(outcomes, conditions.enough, start=start)
    reached = [each.client for each in closed if each.end > start]
    kept = tuple(each.client for each in closed if not each.reason)
    return Call(
        dataclasses.replace(job, cohort=kept),
        job.cohort,
        tuple(Failure(each.client, each.reason) for each in closed if each.reason),
        bytes_down=sum(len(job.broadcast[client]) for client in reached),
        messages_down=len(reached),
        memory=clock_memory(end),
        simulation=simulated(gathered.before, end),
    )


def simulated(before: float, end: float) -> dict[str, object]:
    """Return the entries of a record about simulated time: the round's, and since the run began."""
    return {"simulated_seconds": round(end - before, 6), "simulated_time": round(end, 6)}
