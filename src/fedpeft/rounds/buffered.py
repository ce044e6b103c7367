"""Buffered asynchronous training: the server takes a step whenever K replies have arrived.

    slots   1  ├── a ──┤├───── d ─────┤├─ ...      a turn starts from the newest server state;
            2  ├───── b ─────┤├── e ──┤├─ ...      when it ends, its slot goes to another client
            3  ├─ c ─┤├─ f ─┤├── g ──┤├─ ...
    buffer     c  a  |  f  b  |  d e              K = 2: a step after every second reply
                    step 1   step 2

    delta <- step(delta, sum_i n_i (1 + s_i)^-1/2 u_i / sum_i n_i),   s_i = steps since i started

Turns end in the order of simulated time, which depends on messages, data and seeds, but not on the
values that are trained. So a step first follows the clock, then computes exactly the turns that it
uses. The turns under way between two steps (client, broadcast, end) are part of the server's
memory. A client ends at most one turn in each step; where too few clients are left to fill the
buffer, the server takes the step with the replies that it has.

References:
  Nguyen et al., Federated Learning with Buffered Asynchronous Aggregation, AISTATS 2022.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass

from fedpeft.core.errors import RoundError
from fedpeft.rounds.attendance import Buffering, Call, simulated
from fedpeft.rounds.inflight import Flight, Turn, pack_flight, unpack_flight, without_flight
from fedpeft.rounds.job import Engine, Failure, Job
from fedpeft.rounds.round import run_round, settle, write_job
from fedpeft.rounds.round_plan import RoundPlan, RoundRecord
from fedpeft.server.availability import Conditions, available, opening, outcome
from fedpeft.server.clock import clock_memory, read_clock
from fedpeft.server.state import RoundContext, ServerState

TOO_STALE = "too stale"


def advance(state: ServerState, plan: RoundPlan, engine: Engine) -> tuple[ServerState, RoundRecord]:
    """Run the next round, synchronous or buffered as the plan says."""
    return (run_buffered if plan.buffering else run_round)(state, plan, engine)


def run_buffered(
    state: ServerState, plan: RoundPlan, engine: Engine
) -> tuple[ServerState, RoundRecord]:
    """Follow the clock to the server's next step, run the turns that it uses, and take the step.

    The record's cohort are the clients whose turns ended, in the order of their ends; the bytes of
    a broadcast are counted when its turn ends.

    Raises:
      RoundError: if fewer than `plan.min_replies` clients gave a usable update.
      EngineError: if the engine itself fails.
    """
    began = time.perf_counter()
    assert plan.conditions is not None and plan.buffering is not None
    before = read_clock(state.memory)
    step = _Step(state, plan, plan.conditions, plan.buffering, tuple(engine.clients()))
    flight, ended = _until_full(step, unpack_flight(state.memory), before)
    call = _call(step, flight, ended, before)
    rest = dataclasses.replace(state, memory=without_flight(state.memory))
    return settle(rest, plan, engine, call, began=began)


@dataclass(frozen=True)
class _Step:
    """The values that stay the same while the clock runs to one step of the server."""

    state: ServerState
    plan: RoundPlan
    conditions: Conditions
    buffering: Buffering
    clients: tuple[str, ...]


def _until_full(step: _Step, flight: Flight, now: float) -> tuple[Flight, tuple[Turn, ...]]:
    """Follow the clock until the buffer is full, or no client is left to wait for.

    All turns that end at the same time do so before new turns start in their slots.

    Returns:
      the turns under way at that time, and the turns that ended, in order.
    """
    ended: list[Turn] = []
    while sum(1 for turn in ended if not turn.reason) < step.buffering.size:
        due = [turn for turn in flight.turns if turn.end <= now]
        if due:
            turn = min(due, key=_order)
            ended.append(_checked(step, turn))
            flight = dataclasses.replace(
                flight, turns=tuple(each for each in flight.turns if each is not turn)
            )
            continue
        flight = _refill(step, flight, now, {turn.client for turn in ended})
        coming = _next_moment(step, flight, now, {turn.client for turn in ended})
        if coming is None:
            break
        now = coming
    return flight, tuple(ended)


def _order(turn: Turn) -> tuple[float, int, int]:
    return turn.end, turn.number, turn.place


def _checked(step: _Step, turn: Turn) -> Turn:
    """Return a turn; one that is too stale gets a reason not to be used."""
    limit = step.buffering.max_staleness
    staleness = step.state.round - turn.version
    if turn.reason or limit is None or staleness <= limit:
        return turn
    return dataclasses.replace(turn, reason=f"{TOO_STALE}: {staleness} rounds old")


def _idle(step: _Step, flight: Flight, done: set[str]) -> tuple[str, ...]:
    """Return the clients without a turn under way or one that ended since the last step."""
    busy = done | {turn.client for turn in flight.turns}
    return tuple(client for client in step.clients if client not in busy)


def _refill(step: _Step, flight: Flight, now: float, done: set[str]) -> Flight:
    """Start turns of available clients in the free slots, from the newest server state."""
    free = step.buffering.concurrency - len(flight.turns)
    present = available(step.conditions, _idle(step, flight, done), now)
    count = min(free, len(present))
    if count <= 0:
        return flight
    number = flight.draws + 1
    plan, version = step.plan, step.state.round
    drawn = plan.choose(present, number, step.state, count)
    turns = dict.fromkeys(drawn, number)
    context = RoundContext(version + 1, drawn, plan.expected_cohort, plan.seed, turns)
    job = write_job(step.state, plan, context)
    started = [_start(step, job, place, now) for place in range(len(drawn))]
    return Flight((*flight.turns, *started), number)


def _start(step: _Step, job: Job, place: int, now: float) -> Turn:
    client = job.cohort[place]
    blob, number = job.broadcast[client], job.turns[client]
    ends = outcome(step.conditions, client, number, start=now, bytes_down=len(blob))
    return Turn(client, number, place, step.state.round, ends.end, ends.reason, blob)


def _next_moment(step: _Step, flight: Flight, now: float, done: set[str]) -> float | None:
    """Return the time of the next event: a turn ends, or a client becomes available for a slot."""
    moments = [turn.end for turn in flight.turns]
    idle = _idle(step, flight, done)
    if len(flight.turns) < step.buffering.concurrency and idle:
        opens = opening(step.conditions, idle, 1, now)
        moments += [] if opens is None else [opens]
    return min(moments, default=None)


def _call(step: _Step, flight: Flight, ended: Sequence[Turn], before: float) -> Call:
    """Return the call for the turns that ended; the engine runs only those whose replies count."""
    now = max((turn.end for turn in ended), default=before)
    number = step.state.round + 1
    good = [turn for turn in ended if not turn.reason]
    if not ended:
        raise RoundError(
            f"round {number}: from simulated second {before:.0f} on, no client is ever available. "
            "Give stability.trace_period, or a longer stability.trace"
        )
    staleness = {turn.client: step.state.round - turn.version for turn in good}
    exponent = step.buffering.exponent
    job = Job(
        number,
        tuple(turn.client for turn in good),
        {turn.client: turn.blob for turn in good},
        {turn.client: step.state.committed.get(turn.client, 0) for turn in good},
        step.plan.seed,
        {turn.client: turn.number for turn in good},
        {turn.client: turn.version for turn in good},
    )
    return Call(
        job,
        tuple(turn.client for turn in ended),
        tuple(Failure(turn.client, turn.reason) for turn in ended if turn.reason),
        bytes_down=sum(len(turn.blob) for turn in ended),
        messages_down=len(ended),
        scales={client: (1.0 + age) ** -exponent for client, age in staleness.items() if age},
        memory={**clock_memory(now), **pack_flight(flight)},
        simulation={**simulated(before, now), "staleness": staleness},
    )
