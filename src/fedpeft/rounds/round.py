"""One round of federated training, written once for every engine, algorithm, method and stage.

    choose cohort -> broadcast -> engine.run -> decode in cohort order -> combine -> finish -> apply
    └──────── a call ────────┘    └───────────────────────── settle ─────────────────────────────┘

Replies arrive in any order and are combined in cohort order, because floating-point sums depend on
the order and the result of a round must not.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import time
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fedpeft.client.turns import BUFFERS, DELTA, ClientTurn, Memory, Payload, part_of, under
from fedpeft.core import seeds
from fedpeft.core.deltas import DeltaSpec
from fedpeft.core.errors import DeltaMismatchError, RoundError
from fedpeft.data.examples import NO_DATA
from fedpeft.rounds.attendance import Buffering, Call, attend, gather
from fedpeft.rounds.job import Engine, Failure, Job, Reply
from fedpeft.server.availability import Conditions
from fedpeft.server.sampling import ClientMetrics, Draw, Sampler
from fedpeft.server.state import Algorithm, ClientUpdate, RoundContext, ServerState
from fedpeft.wire import messages
from fedpeft.wire.stages import Stage, decode_all, encode_all, finish_all

__all__ = ["RoundPlan", "RoundRecord", "run_round", "settle", "turn_seed", "write_job"]

_SAMPLER = "sampler."
"""Prefix of the sampler's memory in the server's memory."""

_CHECKED = 100_000
"""Number of clients up to which the names in a cohort are checked."""


@dataclass(frozen=True)
class RoundPlan:
    """The settings of a run that are the same in every round.

    Attributes:
      algorithm: the federated algorithm.
      sampler: selects the cohorts.
      spec: spec of the delta.
      buffer_spec: spec of the buffers that are sent.
      seed: the root seed.
      expected_cohort: mean size of a cohort.
      cohort_size: number of clients to select in a round; 0: `expected_cohort`, rounded.
      up: stages from client to server.
      down: stages from server to client.
      min_replies: with fewer replies the run ends; 0 where an empty round is allowed.
      conditions: simulated conditions of the clients; None: all clients reply and no clock runs.
      buffering: options of buffered asynchronous training; None: rounds are synchronous.
      client_specs: client -> spec of its delta, for clients whose delta is not `spec`, such as
        clients with another rank; the algorithm must be able to combine them.
    """

    algorithm: Algorithm
    sampler: Sampler
    spec: DeltaSpec
    buffer_spec: DeltaSpec
    seed: int
    expected_cohort: float
    cohort_size: int = 0
    up: Sequence[Stage] = ()
    down: Sequence[Stage] = ()
    min_replies: int = 1
    conditions: Conditions | None = None
    buffering: Buffering | None = None
    client_specs: Mapping[str, DeltaSpec] = field(default_factory=dict)

    def choose(
        self, clients: Sequence[str], number: int, state: ServerState, size: int | None = None
    ) -> tuple[str, ...]:
        """Return a cohort: distinct clients, in order.

        Args:
          clients: the clients to choose from.
          number: number of the draw; in synchronous training, the round.
          state: state of the server, with the sampler's memory and the secret root.
          size: number of clients to select; None: as in every round.

        Raises:
          RoundError: if the sampler selects a client twice, or one that is not in `clients`.
        """
        memory = part_of(state.memory, _SAMPLER)
        cohort = tuple(self.sampler.draw(clients, memory, self._draw(number, state, size)))
        strange = len(clients) <= _CHECKED and not set(cohort) <= set(clients)
        if strange or len(set(cohort)) < len(cohort):
            raise RoundError(
                f"round {number}: the sampler chose {', '.join(map(repr, cohort[:5]))}, ...; "
                "allowed are distinct clients of the run"
            )
        return cohort

    def observe(self, state: ServerState, number: int, metrics: ClientMetrics) -> Memory:
        """Return the sampler's memory after a round, as a part of the server's memory."""
        before, draw = part_of(state.memory, _SAMPLER), self._draw(number, state, None)
        return under(_SAMPLER, self.sampler.observe(before, draw, metrics))

    def _draw(self, number: int, state: ServerState, size: int | None) -> Draw:
        size = size or self.cohort_size or round(self.expected_cohort)
        return Draw(number, size, self.seed, state.root)

    def spec_of(self, client: str) -> DeltaSpec:
        """Return the spec of the delta that a client receives and sends."""
        return self.client_specs.get(client, self.spec)


@dataclass(frozen=True)
class RoundRecord:
    """The record of one round.

    Attributes:
      round: number of the round, from 1.
      cohort: the selected clients, in order.
      failures: client -> reason why it has no usable reply.
      metrics: weighted means of the clients' own metrics; evaluation is added by the caller.
      update_norm: L2 norm of the combined update.
      bytes_down: bytes of the encoded broadcasts, for all clients of the cohort.
      bytes_up: bytes of all encoded replies that arrived.
      seconds: wall time of the round.
      norms: L2 norm of each decoded update, in cohort order.
      signal_norm: L2 norm of the combined update before the stages' `finish` (such as noise).
      simulation: entries about simulated time, by their names in the record; {} without a clock.
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
    """Run the round after `state.round`; return the new state and the round's record.

    Raises:
      RoundError: if fewer than `plan.min_replies` clients gave a usable update.
      EngineError: if the engine itself fails.
    """
    began = time.perf_counter()
    number = state.round + 1
    gathered = gather(plan.conditions, engine.clients(), state.memory, plan.min_replies)
    cohort = plan.choose(gathered.clients, number, state)
    context = RoundContext(number, cohort, plan.expected_cohort, plan.seed)
    call = attend(plan.conditions, write_job(state, plan, context), gathered)
    return settle(state, plan, engine, call, began=began)


def settle(
    state: ServerState, plan: RoundPlan, engine: Engine, call: Call, *, began: float
) -> tuple[ServerState, RoundRecord]:
    """Run the turns of a call, combine the replies, and return the new state and the record.

    Args:
      state: of the server, before the round.
      plan: of the run.
      engine: runs the turns.
      call: the turns of the round.
      began: when the round began, as `time.perf_counter` gives it.

    Raises:
      RoundError: if fewer than `plan.min_replies` clients gave a usable update.
      EngineError: if the engine itself fails.
    """
    job, cohort = call.job, call.cohort
    context = RoundContext(
        job.round, cohort, plan.expected_cohort, plan.seed, job.turns, state.root
    )
    _check_enough(plan, call)
    tally = _Tally()
    answers = _in_order(itertools.chain(call.absent, engine.run(job)), cohort)
    updates = _aged(_updates(answers, plan, context, tally), call.scales)
    update = plan.algorithm.combine(updates, context)
    signal_norm = float(torch.linalg.vector_norm(update.delta))
    update, memory = finish_all(plan.up, update, state.memory, context)
    taken = {client: job.turns.get(client, job.round) for client in tally.answered}
    learnt = plan.observe(state, job.round, tally.figures)
    moved = dataclasses.replace(
        state, memory={**memory, **call.memory, **learnt}, committed={**state.committed, **taken}
    )
    after = plan.algorithm.apply(moved, update)
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
    return after, record


def turn_seed(root: int, round: int, client: str) -> int:
    """Return the seed of all randomness in one client's turn."""
    return seeds.derive(root, "turn", round, client)


@dataclass
class _Tally:
    """Running totals over the replies of a round."""

    failures: dict[str, str] = field(default_factory=dict)
    answered: list[str] = field(default_factory=list)
    bytes_up: int = 0
    figures: dict[str, dict[str, float]] = field(default_factory=dict)
    weights: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)

    def add(self, update: ClientUpdate, notes: Mapping[str, str], norm: float) -> None:
        self.answered.append(update.client)
        self.weights.append(update.weight)
        self.norms.append(norm)
        self.figures[update.client] = {
            key.removeprefix("metric."): float(value)
            for key, value in notes.items()
            if key.startswith("metric.")
        }

    def means(self) -> dict[str, float]:
        """Return the weighted means of the clients' own metrics."""
        total, sums = 0.0, dict[str, float]()
        for weight, figures in zip(self.weights, self.figures.values(), strict=True):
            total += weight
            for name, value in figures.items():
                sums[f"train_{name}"] = sums.get(f"train_{name}", 0.0) + value * weight
        return {name: value / total for name, value in sums.items() if total}


def write_job(state: ServerState, plan: RoundPlan, context: RoundContext) -> Job:
    """Encode the broadcast to each client; clients with the same tensors share one message.

    Raises:
      DeltaMismatchError: if the algorithm gives a client a delta that does not match its spec.
    """
    encoded: dict[Hashable, tuple[Payload, bytes]] = {}
    broadcast = {}
    for client in context.cohort:
        payload = plan.algorithm.broadcast(state, client)
        plan.spec_of(client).check_flat(payload[DELTA])
        key = tuple((name, _identity(tensor)) for name, tensor in payload.items())
        if key not in encoded:
            sent, _ = encode_all(plan.down, payload, {}, _turn(context, client))
            encoded[key] = payload, messages.encode(sent)  # kept alive, so that no id is reused
        broadcast[client] = encoded[key][1]
    committed = {client: state.committed.get(client, 0) for client in context.cohort}
    return Job(context.round, context.cohort, broadcast, committed, plan.seed, context.turns)


def _identity(tensor: Tensor) -> Hashable:
    """Return a key that is equal only for the same living tensor, not changed in place since."""
    return id(tensor), object() if tensor.is_inference() else tensor._version


def _turn(context: RoundContext, client: str) -> ClientTurn:
    """Return a turn as the server knows it, without the client's data and memory."""
    number = context.turns.get(client, context.round)
    seed = turn_seed(context.seed, number, client)
    return ClientTurn(number, client, NO_DATA, {}, seed, context.round - 1)


def _check_enough(plan: RoundPlan, call: Call) -> None:
    """Check that enough clients will reply, before any turn is computed.

    Raises:
      RoundError: if fewer clients than needed will reply.
    """
    if call.absent and len(call.job.cohort) < plan.min_replies:
        reasons = "; ".join(f"{each.client}: {each.reason}" for each in call.absent[:3])
        raise RoundError(
            f"round {call.job.round}: {len(call.job.cohort)} of {len(call.cohort)} clients would "
            f"answer in simulated time, at least {plan.min_replies} are needed "
            f"(federation.min_replies). First reasons: {reasons}"
        )


def _aged(updates: Iterable[ClientUpdate], scales: Mapping[str, float]) -> Iterator[ClientUpdate]:
    """Scale the updates that started from an old server state; buffers are not scaled."""
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
    """Yield answers in cohort order; each waits until all before it have arrived."""
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
    """Decode and check answers one by one; unusable ones are counted as failures.

    Raises:
      RoundError: after the last answer, if too few were usable.
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
    """Decode and check a reply; return the update, the notes and the update's L2 norm."""
    tensors, notes = messages.decode(reply.blob)
    payload: Payload = tensors
    if plan.up:
        payload = decode_all(plan.up, tensors, _turn(context, reply.client))
    spec = plan.spec_of(reply.client)
    spec.check_flat(payload[DELTA])
    if plan.buffer_spec.names:
        plan.buffer_spec.check_flat(payload[BUFFERS])
    norms = {name: float(torch.linalg.vector_norm(tensor)) for name, tensor in payload.items()}
    for name, norm in norms.items():
        # a finite norm shows that all numbers are finite; an infinite one may be an overflow
        if not math.isfinite(norm) and not bool(torch.isfinite(payload[name]).all()):
            raise ValueError(
                f"{name} has numbers that are not finite (training diverged: lower client.lr)"
            )
    weight = float(notes.get("weight", "1"))
    if not 0 < weight < float("inf"):
        raise ValueError(f"weight is {weight}; allowed is a finite number above 0")
    return ClientUpdate(reply.client, payload, weight, spec), notes, norms[DELTA]
