"""One round of federated training, written once for every engine, algorithm, method and stage.

    choose cohort -> broadcast -> engine.run -> decode in cohort order -> combine -> finish -> apply
    └──────── a call ────────┘    └───────────────────────── settle ─────────────────────────────┘

Replies arrive in any order and are combined in cohort order, because floating-point sums depend on
the order and the result of a round must not.
"""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from fedpeft.client.turns import DELTA, Payload
from fedpeft.core.errors import RoundError
from fedpeft.rounds.attendance import Call, attend, gather
from fedpeft.rounds.finite import check_combined, check_finished, check_state
from fedpeft.rounds.gate import Tally, usable_updates
from fedpeft.rounds.job import Engine, Failure, Job, Reply
from fedpeft.rounds.round_plan import RoundPlan, RoundRecord, server_turn
from fedpeft.server.state import ClientUpdate, RoundContext, ServerState
from fedpeft.wire import messages
from fedpeft.wire.stages import encode_all, finish_all


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
      NotFiniteError: if the update or the new state is not finite.
      EngineError: if the engine itself fails.
    """
    job, cohort = call.job, call.cohort
    origin = state.digest if state.root.numel() else ""
    context = RoundContext(
        job.round, cohort, plan.expected_cohort, plan.seed, job.turns, state.root, origin
    )
    _check_enough(plan, call)
    tally = Tally()
    answers = _in_order(itertools.chain(call.absent, engine.run(job)), cohort)
    updates = _aged(usable_updates(answers, plan, context, tally), call.scales)
    update = plan.algorithm.combine(updates, context)
    check_combined(update, job.round)
    signal_norm = float(torch.linalg.vector_norm(update.delta))
    update, memory = finish_all(plan.up, update, state.memory, context)
    check_finished(update, job.round, plan.up)
    taken = {client: job.turns.get(client, job.round) for client in tally.answered}
    learnt = plan.observe(state, job.round, tally.figures)
    moved = dataclasses.replace(
        state, memory={**memory, **call.memory, **learnt}, committed={**state.committed, **taken}
    )
    after = plan.algorithm.apply(moved, update)
    check_state(after, job.round)
    record = RoundRecord(
        round=job.round,
        cohort=cohort,
        failures=tally.failures,
        metrics=tally.means(),
        update_norm=float(torch.linalg.vector_norm(update.delta)),
        bytes_down=call.bytes_down - sum(len(job.broadcast[name]) for name in tally.unreached),
        bytes_up=tally.bytes_up,
        messages_down=call.messages_down - len(tally.unreached),
        messages_up=tally.messages_up,
        seconds=time.perf_counter() - began,
        norms=tuple(tally.norms),
        signal_norm=signal_norm,
        simulation=call.simulation,
    )
    return after, record


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
            sent, _ = encode_all(plan.down, payload, {}, server_turn(context, client))
            encoded[key] = payload, messages.encode(sent)  # kept alive, so that no id is reused
        broadcast[client] = encoded[key][1]
    committed = {client: state.committed.get(client, 0) for client in context.cohort}
    return Job(context.round, context.cohort, broadcast, committed, plan.seed, context.turns)


def _identity(tensor: Tensor) -> Hashable:
    """Return a key that is equal only for the same living tensor, not changed in place since."""
    return id(tensor), object() if tensor.is_inference() else tensor._version


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
