"""Client stability: who can be asked, who answers, and when the server knows.

    asked ──download──compute──upload──> reply          time runs in simulated seconds
      │        └── breaks off ──> dropped out           (server/clock.py)
      │        └── takes too long ──> missed the deadline
      └── not there ──> not available                   (server/traces.py)

How a turn ends depends on the seed, the clock and the sizes of messages and data, never on what
is trained. It is known before any work is done, so only turns that count are computed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from fedpeft.server.clock import Costs, Work, turn_seconds, uniform
from fedpeft.server.traces import Trace, available_until, next_opening

__all__ = [
    "DROPPED_OUT",
    "MISSED_DEADLINE",
    "NOT_AVAILABLE",
    "NOT_NEEDED",
    "Conditions",
    "Outcome",
    "available",
    "close_round",
    "opening",
    "outcome",
]

DROPPED_OUT = "dropped out"
MISSED_DEADLINE = "missed the deadline"
NOT_AVAILABLE = "not available"
NOT_NEEDED = "not needed: enough others answered first"


@dataclass(frozen=True)
class Conditions:
    """The world that clients live in.

    Attributes:
      seed: the root seed of the run.
      examples: client -> examples that a turn trains on, all epochs together.
      bytes_up: of a reply, as encoded.
      costs: of the simulated clock.
      dropout: probability that a turn breaks off, in [0, 1).
      deadline: longest turn that is waited for, in simulated seconds; None: the server waits.
      wanted: replies that end a synchronous round; the others are not needed. None: all.
      trace: when clients are available; None: always.
      from_available: draw cohorts from the clients that are available, instead of from all.
    """

    seed: int
    examples: Mapping[str, int]
    bytes_up: int
    costs: Costs = field(default_factory=Costs)
    dropout: float = 0.0
    deadline: float | None = None
    wanted: int | None = None
    trace: Trace | None = None
    from_available: bool = False


@dataclass(frozen=True)
class Outcome:
    """How one turn ends.

    Attributes:
      client: who took it.
      end: when the server knows, in simulated seconds since the beginning of the run.
      reason: why there is no reply; "" if there is one.
    """

    client: str
    end: float
    reason: str = ""


def outcome(
    conditions: Conditions, client: str, turn: int, *, start: float, bytes_down: int
) -> Outcome:
    """Return how a turn ends; whatever happens first decides.

    A turn that breaks off does so at a moment drawn uniformly over its length, and the server
    notices at once; a client that leaves while it works has dropped out.

    Args:
      conditions: of the run.
      client: who is asked.
      turn: number of the turn; gives its random draws.
      start: when the client is asked.
      bytes_down: of the broadcast, as encoded.
    """
    trace, seed = conditions.trace, conditions.seed
    until = available_until(trace, client, start) if trace else math.inf
    if until is None:
        return Outcome(client, start, NOT_AVAILABLE)
    work = Work(conditions.examples[client], bytes_down, conditions.bytes_up)
    seconds = turn_seconds(conditions.costs, work, client, turn, seed=seed)
    ends = [Outcome(client, start + seconds)]
    if uniform(seed, "dropout", turn, client) < conditions.dropout:
        broken = start + seconds * uniform(seed, "broken", turn, client)
        ends.append(Outcome(client, broken, DROPPED_OUT))
    if until < start + seconds:
        ends.append(Outcome(client, until, DROPPED_OUT))
    if conditions.deadline is not None and conditions.deadline < seconds:
        ends.append(Outcome(client, start + conditions.deadline, MISSED_DEADLINE))
    return min(ends, key=lambda each: each.end)


def close_round(
    outcomes: Sequence[Outcome], wanted: int | None, *, start: float
) -> tuple[tuple[Outcome, ...], float]:
    """End a synchronous round at the `wanted`-th reply, or when all turns have ended.

    Args:
      outcomes: of all turns that began at `start`, in cohort order.
      wanted: replies that are enough; None: all.
      start: of the round.

    Returns:
      the outcomes in the same order, those who came too late to be needed with a reason; and when
      the round ended.
    """
    replies = sorted((each for each in outcomes if not each.reason), key=lambda each: each.end)
    enough = len(outcomes) if wanted is None else wanted
    if len(replies) < enough:
        return tuple(outcomes), max((each.end for each in outcomes), default=start)
    end = replies[enough - 1].end if enough else start
    taken = {each.client for each in replies[:enough]}
    closed = [
        each if each.reason or each.client in taken else Outcome(each.client, end, NOT_NEEDED)
        for each in outcomes
    ]
    return tuple(closed), end


def available(conditions: Conditions, clients: Sequence[str], time: float) -> tuple[str, ...]:
    """Return the clients that are available at a time, in the same order."""
    trace = conditions.trace
    if trace is None:
        return tuple(clients)
    return tuple(c for c in clients if available_until(trace, c, time) is not None)


def opening(
    conditions: Conditions, clients: Sequence[str], count: int, time: float
) -> float | None:
    """Return the first moment from `time` on at which `count` of the clients are available.

    Returns:
      None if that never happens.
    """
    trace = conditions.trace
    if trace is None:
        return time if len(clients) >= count else None
    limit = time + (trace.period or math.inf)
    while math.isfinite(time) and time <= limit:
        if len(available(conditions, clients, time)) >= count:
            return time
        later = [_later(trace, client, time) for client in clients]
        time = min((moment for moment in later if moment is not None), default=math.inf)
    return None


def _later(trace: Trace, client: str, time: float) -> float | None:
    """Return when a client comes back that is away at `time`, or after it leaves the next time."""
    until = available_until(trace, client, time)
    return next_opening(trace, client, time if until is None else until)
