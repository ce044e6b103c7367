"""One round of federated training, written once for every engine, algorithm, method and stage.

    choose cohort -> broadcast -> engine.run -> decode in cohort order -> combine -> finish -> apply
    └──────── a call ────────┘    └───────────────────────── settle ─────────────────────────────┘

Replies arrive in any order and are taken in cohort order: floating-point sums depend on order, and
the result of a round may not.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from fedpeft.client.turns import BUFFERS, DELTA, ClientTurn, Memory, Payload
from fedpeft.core import seeds
from fedpeft.core.deltas import DeltaSpec
from fedpeft.core.errors import DeltaMismatchError, RoundError
from fedpeft.data.examples import NO_DATA
from fedpeft.rounds.attendance import Buffering, Call, attend, gather
from fedpeft.rounds.job import Engine, Failure, Job, Reply
from fedpeft.server.availability import Conditions
from fedpeft.server.state import Algorithm, ClientUpdate, RoundContext, ServerState
from fedpeft.wire import messages
from fedpeft.wire.stages import Stage, decode_all, encode_all, finish_all

__all__ = ["RoundPlan", "RoundRecord", "run_round", "settle", "turn_seed", "write_job"]

Sampler = Callable[[Sequence[str], int], tuple[str, ...]]
SecretSampler = Callable[[Sequence[str], int, Memory], tuple[str, ...]]


@dataclass(frozen=True)
class RoundPlan:
    """What does not change from round to round.

    Attributes:
      algorithm: how updates become a new delta.
      sampler: (clients, round) -> the cohort of that round, in order.
      spec: of the delta.
      buffer_spec: of the travelling buffers.
      seed: the root seed.
      expected_cohort: mean size of a cohort.
      up: stages from client to server.
      down: stages from server to client.
      min_replies: fewer than this end the run; 0 where an empty round is legal.
      secret_sampler: takes the place of `sampler` where cohorts are drawn from a secret in the
        server's memory: (clients, round, memory) -> the cohort.
      conditions: the world that clients live in; None: everybody answers and no clock runs.
      buffering: of buffered asynchronous training; None: rounds are synchronous.
    """

    algorithm: Algorithm
    sampler: Sampler
    spec: DeltaSpec
    buffer_spec: DeltaSpec
    seed: int
    expected_cohort: float
    up: Sequence[Stage] = ()
    down: Sequence[Stage] = ()
    min_replies: int = 1
    secret_sampler: SecretSampler | None = None
    conditions: Conditions | None = None
    buffering: Buffering | None = None


@dataclass(frozen=True)
class RoundRecord:
    """What one round was.

    Attributes:
      round: from 1.
      cohort: the clients that were asked, in order.
      failures: client -> reason.
      metrics: weighted means of the clients' own figures; evaluation is added by the caller.
      update_norm: L2 norm of the combined update.
      bytes_down: as encoded, all clients of the cohort.
      bytes_up: as encoded, all replies that came.
      seconds: wall time of the round.
      norms: L2 norm of each decoded update, in cohort order.
      signal_norm: L2 norm of the combined update before the stages' last step (such as noise).
      simulation: what the simulated clock adds, by its names in the record; {} without one.
    """

    round: int
    cohort: tuple[str, ...]
    failures: Mapping[str, str]
    metrics: Mapping[str, float]
    update_norm: float
    bytes_down: int
    bytes_up: int
    seconds: float
    norms: tuple[float, ...] = ()
    signal_norm: float = 0.0
    simulation: Mapping[str, object] = field(default_factory=dict)


def run_round(
    state: ServerState, plan: RoundPlan, engine: Engine
) -> tuple[ServerState, RoundRecord]:
    """Run the round after `state.round` and return the new state and its record.

    Raises:
      RoundError: if fewer than `plan.min_replies` clients gave a usable update.
      EngineError: if the engine itself fails.
    """
    began = time.perf_counter()
    number = state.round + 1
    gathered = gather(plan.conditions, engine.clients(), state.memory, plan.min_replies)
    cohort = _cohort(state, plan, gathered.clients)
    context = RoundContext(number, cohort, plan.expected_cohort, plan.seed)
    call = attend(plan.conditions, write_job(state, plan, context), gathered)
    state, record = settle(state, plan, engine, call)
    return state, dataclasses.replace(record, seconds=time.perf_counter() - began)


def settle(
    state: ServerState, plan: RoundPlan, engine: Engine, call: Call
) -> tuple[ServerState, RoundRecord]:
    """Have the turns of a call taken, combine what comes back, and return the new state.

    Raises:
      RoundError: if fewer than `plan.min_replies` clients gave a usable update.
      EngineError: if the engine itself fails.
    """
    began = time.perf_counter()
    job, cohort = call.job, call.cohort
    context = RoundContext(job.round, cohort, plan.expected_cohort, plan.seed, job.turns)
    _check_enough(plan, call)
    tally = _Tally()
    answers = _in_order(itertools.chain(call.absent, engine.run(job)), cohort)
    updates = _aged(_updates(answers, plan, context, tally), call.scales)
    update = plan.algorithm.combine(updates, context)
    signal_norm = float(torch.linalg.vector_norm(update.delta))
    update, memory = finish_all(plan.up, update, state.memory, context)
    taken = {client: job.turns.get(client, job.round) for client in tally.answered}
    moved = dataclasses.replace(
        state, memory={**memory, **call.memory}, committed={**state.committed, **taken}
    )
    record = RoundRecord(
        round=job.round,
        cohort=cohort,
        failures=tally.failures,
        metrics=tally.means(),
        update_norm=float(torch.linalg.vector_norm(update.delta)),
        bytes_down=call.bytes_down,
        bytes_up=tally.bytes_up,
        seconds=time.perf_counter() - began,
        norms=tuple(tally.norms),
        signal_norm=signal_norm,
        simulation=call.simulation,
    )
    return plan.algorithm.apply(moved, update), record


def turn_seed(root: int, round: int, client: str) -> int:
    """Return the seed of everything random in one client's turn."""
    return seeds.derive(root, "turn", round, client)


@dataclass
class _Tally:
    """Counts while replies stream by."""

    failures: dict[str, str] = field(default_factory=dict)
    answered: list[str] = field(default_factory=list)
    bytes_up: int = 0
    weight: float = 0.0
    sums: dict[str, float] = field(default_factory=dict)
    norms: list[float] = field(default_factory=list)

    def add(self, update: ClientUpdate, notes: Mapping[str, str], norm: float) -> None:
        self.answered.append(update.client)
        self.weight += update.weight
        self.norms.append(norm)
        for key, value in notes.items():
            if key.startswith("metric."):
                name = "train_" + key.removeprefix("metric.")
                self.sums[name] = self.sums.get(name, 0.0) + float(value) * update.weight

    def means(self) -> dict[str, float]:
        return {name: total / self.weight for name, total in self.sums.items() if self.weight}


def _cohort(state: ServerState, plan: RoundPlan, clients: Sequence[str]) -> tuple[str, ...]:
    if plan.secret_sampler is not None:
        return plan.secret_sampler(clients, state.round + 1, state.memory)
    return plan.sampler(clients, state.round + 1)


def write_job(state: ServerState, plan: RoundPlan, context: RoundContext) -> Job:
    """Encode what each client gets; equal payloads are encoded once."""
    encoded: dict[int, bytes] = {}
    broadcast = {}
    for client in context.cohort:
        payload = plan.algorithm.broadcast(state, client)
        key = hash(tuple((name, tensor.data_ptr()) for name, tensor in payload.items()))
        if key not in encoded:
            sent, _ = encode_all(plan.down, payload, {}, _turn(context, client))
            encoded[key] = messages.encode(sent)
        broadcast[client] = encoded[key]
    committed = {client: state.committed.get(client, 0) for client in context.cohort}
    return Job(context.round, context.cohort, broadcast, committed, plan.seed, context.turns)


def _turn(context: RoundContext, client: str) -> ClientTurn:
    """The server's view of a turn: everything but the client's data and memory."""
    number = context.turns.get(client, context.round)
    seed = turn_seed(context.seed, number, client)
    return ClientTurn(number, client, NO_DATA, {}, seed, context.round - 1)


def _check_enough(plan: RoundPlan, call: Call) -> None:
    """Refuse a round that is known to fail before anything of it is computed.

    Raises:
      RoundError: if fewer clients than needed will answer.
    """
    if call.absent and len(call.job.cohort) < plan.min_replies:
        reasons = "; ".join(f"{each.client}: {each.reason}" for each in call.absent[:3])
        raise RoundError(
            f"round {call.job.round}: {len(call.job.cohort)} of {len(call.cohort)} clients would "
            f"answer in simulated time, at least {plan.min_replies} are needed "
            f"(federation.min_replies). First reasons: {reasons}"
        )


def _aged(updates: Iterable[ClientUpdate], scales: Mapping[str, float]) -> Iterator[ClientUpdate]:
    """Scale updates that started from an old server state; values of buffers stay as they are."""
    for update in updates:
        scale = scales.get(update.client, 1.0)
        if scale == 1.0:
            yield update
            continue
        payload = {**update.payload, DELTA: update.payload[DELTA] * scale}
        yield dataclasses.replace(update, payload=payload)


def _in_order(
    answers: Iterable[Reply | Failure], cohort: Sequence[str]
) -> Iterator[Reply | Failure]:
    """Hold answers back until all of their predecessors in the cohort have come."""
    waiting: dict[str, Reply | Failure] = {}
    place = 0
    for answer in answers:
        waiting[answer.client] = answer
        while place < len(cohort) and cohort[place] in waiting:
            yield waiting.pop(cohort[place])
            place += 1
    for client in cohort[place:]:
        yield waiting.pop(client, Failure(client, "no answer"))


def _updates(
    answers: Iterable[Reply | Failure], plan: RoundPlan, context: RoundContext, tally: _Tally
) -> Iterator[ClientUpdate]:
    """Decode and check answers one by one; what cannot be used becomes a failure.

    Raises:
      RoundError: at the end, if too few were usable.
    """
    for answer in answers:
        if isinstance(answer, Failure):
            tally.failures[answer.client] = answer.reason
            continue
        tally.bytes_up += len(answer.blob)
        try:
            update, notes, norm = _decode(answer, plan, context)
        except (DeltaMismatchError, ValueError, LookupError, RuntimeError) as error:
            tally.failures[answer.client] = f"reply refused: {error}"
            continue
        tally.add(update, notes, norm)
        yield update
    if len(tally.answered) < plan.min_replies:
        reasons = "; ".join(f"{c}: {r}" for c, r in list(tally.failures.items())[:3])
        raise RoundError(
            f"round {context.round}: {len(tally.answered)} of {len(context.cohort)} clients gave a "
            f"usable update, at least {plan.min_replies} are needed (federation.min_replies). "
            f"First reasons: {reasons or 'none'}"
        )


def _decode(
    reply: Reply, plan: RoundPlan, context: RoundContext
) -> tuple[ClientUpdate, dict[str, str], float]:
    """Decode and check a reply; also give the L2 norm of its update."""
    tensors, notes = messages.decode(reply.blob)
    payload: Payload = tensors
    if plan.up:
        payload = decode_all(plan.up, tensors, _turn(context, reply.client))
    plan.spec.check_flat(payload[DELTA])
    if plan.buffer_spec.names:
        plan.buffer_spec.check_flat(payload[BUFFERS])
    norms = {name: float(torch.linalg.vector_norm(tensor)) for name, tensor in payload.items()}
    for name, norm in norms.items():
        # a finite norm has read every number; another may only have overflowed
        if not math.isfinite(norm) and not bool(torch.isfinite(payload[name]).all()):
            raise ValueError(
                f"{name} has numbers that are not finite (training diverged: lower client.lr)"
            )
    weight = float(notes.get("weight", "1"))
    if not 0 < weight < float("inf"):
        raise ValueError(f"weight is {weight}, allowed is a finite number above 0")
    return ClientUpdate(reply.client, payload, weight), notes, norms[DELTA]
