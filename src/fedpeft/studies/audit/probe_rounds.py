"""Rounds of probe clients: the run's own rounds, with cohorts and updates that are chosen here.

probes ──> the client half ──> replies ──> combine ──> stages ──> apply
                                  └── kept                 └── kept
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from fedpeft.client.turns import DELTA, ClientTurn, LocalResult, Memory, Payload
from fedpeft.core.errors import RoundError
from fedpeft.data.examples import NO_DATA
from fedpeft.rounds.client_half import ClientHalf, run_turn
from fedpeft.rounds.job import Failure, Job, Reply
from fedpeft.rounds.round import run_round
from fedpeft.rounds.round_plan import RoundPlan, turn_seed
from fedpeft.server.sampling import sampler_of
from fedpeft.server.state import Algorithm, ClientUpdate, RoundContext, ServerState, Update
from fedpeft.studies.audit.statistics import Floats

SILENT = "this probe does not answer"
"""The reason of a probe's failure."""


@dataclass(frozen=True)
class Probe:
    """One round of probe clients.

    Attributes:
      asked: number of clients in the cohort.
      answers: number of them that reply; the others fail.
      senders: number of replies with an update along `direction_P`; the others have zeros.
      length: norm of such an update, in clip bounds.
    """

    asked: int
    answers: int
    senders: int = 0
    length: float = 0.0


@dataclass(frozen=True)
class Released:
    """What a round of probes released.

    Attributes:
      sum_P: what the server applies, times the expected cohort: the noised sum.
      replies: the clients' decoded updates.
    """

    sum_P: Tensor
    replies: Sequence[Tensor]

    def total(self) -> Floats:
        """Return the sum [P] of the clients' updates."""
        total_P = np.zeros(len(self.sum_P))
        for reply_P in self.replies:
            total_P += numbers(reply_P)
        return total_P


class ProbeEngine:
    """An engine whose clients are probes.

    Args:
      plan: of the run; its up stages are the clients'.
      rounds: the probes of rounds 1, 2, ...
      update_P: the update of length 1, in clip bounds.
      memories: of the clients; brought up to date.
    """

    def __init__(
        self,
        plan: RoundPlan,
        rounds: Sequence[Probe],
        update_P: Tensor,
        memories: dict[str, Memory],
    ) -> None:
        self._rounds = rounds
        self._update_P = update_P
        self._memories = memories
        self._half = ClientHalf(self._train, plan.up, plan.down, plan.spec, private=True)

    def clients(self) -> Sequence[str]:
        """Return the names of the probes."""
        return [f"audit-probe-{i}" for i in range(max(probe.asked for probe in self._rounds))]

    def run(self, job: Job) -> Iterator[Reply | Failure]:
        """Answer for as many clients as the round's probe says; the others fail."""
        probe = self._rounds[job.round - 1]
        for place, client in enumerate(job.cohort):
            if place >= probe.answers:
                yield Failure(client, SILENT)
                continue
            memory = self._memories.get(client, {})
            seed = turn_seed(job.seed, job.round, client)
            turn = ClientTurn(job.round, client, NO_DATA, memory, seed, job.round - 1)
            blob, self._memories[client] = run_turn(self._half, job.broadcast[client], turn)
            yield Reply(client, blob, 0.0)

    def _train(self, broadcast: Payload, turns: Sequence[ClientTurn]) -> Iterator[LocalResult]:
        for turn in turns:
            probe = self._rounds[turn.round - 1]
            sends = int(turn.client.rsplit("-", 1)[1]) < probe.senders
            update_P = self._update_P * (probe.length if sends else 0.0)
            yield LocalResult({DELTA: update_P}, 1.0, {})


def release_rounds(
    state: ServerState,
    plan: RoundPlan,
    update_P: Tensor,
    rounds: Sequence[Probe],
    memories: dict[str, Memory],
) -> Iterator[Released]:
    """Run rounds of probes, from the first, and yield what each released.

    Args:
      state: the state before round 1.
      plan: the plan of every round; its sampler is not used.
      update_P: the update of length 1, in clip bounds.
      rounds: the probes of each round.
      memories: of the clients; brought up to date. The same state and memories repeat a round.

    Raises:
      RoundError: if a reply could not be used.
    """
    engine = ProbeEngine(plan, rounds, update_P, memories)
    sampler = sampler_of(lambda clients, number: clients[: rounds[number - 1].asked])
    watcher = _Watcher()
    plan = dataclasses.replace(plan, sampler=sampler, algorithm=watcher.watched(plan.algorithm))
    for _ in rounds:
        state, record = run_round(state, plan, engine)
        refused = [reason for reason in record.failures.values() if reason != SILENT]
        if refused:
            raise RoundError(
                f"round {record.round}: a probe's reply could not be used: {refused[0]}. Audit "
                "with other wire.up stages, or another privacy.clip_norm"
            )
        yield Released(watcher.applied_P.double() * plan.expected_cohort, watcher.replies)


@dataclass
class _Watcher:
    """What the algorithm of the current round combined and applied."""

    replies: list[Tensor] = field(default_factory=list)
    applied_P: Tensor = field(default_factory=lambda: torch.empty(0))

    def watched(self, algorithm: Algorithm) -> Algorithm:
        """Return the algorithm that also keeps what it combines and applies."""

        def combine(updates: Iterable[ClientUpdate], context: RoundContext) -> Update:
            self.replies = []
            return algorithm.combine(map(self._kept, updates), context)

        def apply(state: ServerState, update: Update) -> ServerState:
            self.applied_P = update.delta.clone()
            return algorithm.apply(state, update)

        return dataclasses.replace(algorithm, combine=combine, apply=apply)

    def _kept(self, update: ClientUpdate) -> ClientUpdate:
        self.replies.append(update.payload[DELTA].clone())
        return update


def numbers(flat_P: Tensor) -> Floats:
    """Return a tensor [P] in double precision."""
    found: Floats = flat_P.double().numpy()
    return found
