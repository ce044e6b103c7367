"""Client stability: which clients are available, which reply, and when a turn ends.

    selected ──download──compute──upload──> reply       time runs in simulated seconds
      │        └── breaks off ──> dropped out           (server/clock.py)
      │        └── takes too long ──> missed the deadline
      └── away ──> not available                        (server/traces.py)

How a turn ends depends on the seed, the clock and the sizes of messages and data, not on the values
that are trained. It is known before any work is done, so only turns that count are computed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from fedpeft.server.clock import Costs, Work, turn_seconds, uniform
from fedpeft.server.traces import Trace, available_until, next_opening

DROPPED_OUT = "dropped out"
MISSED_DEADLINE = "missed the deadline"
NOT_AVAILABLE = "not available"
NOT_NEEDED = "not needed: enough others answered first"


@dataclass(frozen=True)
class Conditions:
    """The simulated conditions under which clients work.

    Attributes:
      seed: the root seed of the run.
      examples: client -> number of examples that a turn trains on, over all epochs.
      bytes_up: size of an encoded reply, in bytes.
      costs: costs of a turn in simulated time.
      dropout: probability that a turn breaks off, in [0, 1).
      deadline: longest turn that the server waits for, in simulated seconds; None: no limit.
      enough: number of replies that ends a synchronous round; later ones are not needed. None: all.
      trace: when clients are available; None: always.
      from_available: draw cohorts from the clients that are available, instead of from all.
    """

    seed: int
    examples: Mapping[str, int]
    bytes_up: int
    costs: Costs = field(default_factory=Costs)
    dropout: float = 0.0
    deadline: float | None = None
    enough: int | None = None
    trace: Trace | None = None
    from_available: bool = False


@dataclass(frozen=True)
class Outcome:
    """How one turn ends.

    Attributes:
      client: name of the client.
      end: time at which the server learns how it ended, in simulated seconds since the run began.
      reason: why there is no reply; "" if there is one.
    """

    client: str
    end: float
    reason: str = ""


def outcome(
    conditions: Conditions, client: str, turn: int, *, start: float, bytes_down: int
) -> Outcome:
    """Return how a turn ends: in a reply, a dropout or a missed deadline, whichever is first.

    A turn that breaks off does so at a moment drawn uniformly over its length, and the server
    notices at once; a client that becomes unavailable during its turn has dropped out.

    Args:
      conditions: conditions of the run.
      client: name of the client.
      turn: number of the turn, on which its random draws depend.
      start: time of the broadcast, in simulated seconds.
      bytes_down: size of the encoded broadcast, in bytes.
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
    outcomes: Sequence[Outcome], enough: int | None, *, start: float
) -> tuple[tuple[Outcome, ...], float]:
    """End a synchronous round once enough replies have arrived, or when all turns have ended.

    Args:
      outcomes: outcomes of all turns that began at `start`, in cohort order.
      enough: number of replies that ends the round; None: all.
      start: beginning of the round, in simulated seconds.

    Returns:
      the outcomes in the same order, with a reason for replies that are not needed; and the time at
      which the round ended.
    """
    replies = sorted((each for each in outcomes if not each.reason), key=lambda each: each.end)
    enough = len(outcomes) if enough is None else enough
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
    """Return when a client next becomes available: after `time`, or after its present interval."""
    until = available_until(trace, client, time)
    return next_opening(trace, client, time if until is None else until)
