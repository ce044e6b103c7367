"""Canary clients: each sends one random direction, twice as long as the clip bound.

    ordinary clients ──> their engine ─┐
                                       ├─> the round as it is ──> what is released ──> · direction
    canaries ──> the client half ──────┘

A canary takes its turn through the same client half, messages and stages as any other client; only
its update is special. What the server releases is projected on the directions of all canaries, also
of those that did not take part.

    central   a canary is in the federation or not; the noised aggregate is projected
    local     a canary sends its direction or the opposite; its own noised reply is projected

The cosine of a fixed vector with a uniform direction of d dimensions has mean 0 and variance 1/d
exactly, and is Gaussian but for an excess kurtosis of -6/(d + 2).

References:
  Andrew et al., One-shot Empirical Privacy Estimation for Federated Learning, ICLR 2024.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from fedpeft.client.turns import DELTA, ClientTurn, LocalResult, LocalTrainer, Memory, Payload
from fedpeft.core import seeds
from fedpeft.core.errors import RoundError
from fedpeft.data.examples import NO_DATA
from fedpeft.rounds.client_half import ClientHalf, run_turn
from fedpeft.rounds.job import Engine, Failure, Job, Reply
from fedpeft.rounds.round import run_round
from fedpeft.rounds.round_plan import RoundPlan, RoundRecord, turn_seed
from fedpeft.server.sampling import Sampler, sampler_of
from fedpeft.server.state import Algorithm, ClientUpdate, RoundContext, ServerState, Update
from fedpeft.studies.audit.statistics import Flags, Floats

_PREFIX = "audit-canary-"


@dataclass(frozen=True)
class Canaries:
    """The canaries of an audit.

    Attributes:
      present: a fair coin for each, [K]: whether it takes part (central), or sends its direction
        and not the opposite (local).
      seed: seed of coins and directions.
      clip_norm: clip bound C; they send updates of norm 2 C.
      opposite: whether absent canaries send the opposite instead of nothing.
    """

    present: Flags
    seed: int
    clip_norm: float
    opposite: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """The clients that take part."""
        taking = range(len(self.present)) if self.opposite else np.flatnonzero(self.present)
        return tuple(f"{_PREFIX}{number}" for number in taking)

    def direction(self, number: int, size: int) -> Tensor:
        """Return a canary's unit vector [size], uniform on the sphere; drawn again at each call."""
        generator = seeds.generator(self.seed, "audit", "direction", number)
        drawn = torch.randn(size, generator=generator)
        unit: Tensor = drawn / torch.linalg.vector_norm(drawn)
        return unit

    def update(self, client: str, size: int) -> Tensor | None:
        """Return a canary's update before clipping [size]; None for an ordinary client."""
        if not client.startswith(_PREFIX):
            return None
        number = int(client.removeprefix(_PREFIX))
        sign = 1.0 if self.present[number] else -1.0
        return self.direction(number, size) * (2 * sign * self.clip_norm)


@dataclass(frozen=True)
class Projections:
    """The projections of what was released on the canaries' directions.

    Attributes:
      projected_TK: projections in each round in which canaries may take part, in clip bounds; a
        round's aggregate is the noised sum.
      cosines_K: cosine of each direction with the sum of the aggregates (central), or with the
        concatenation of the canary's own replies (local).
    """

    projected_TK: Floats
    cosines_K: Floats


def draw_canaries(count: int, *, seed: int, clip_norm: float, opposite: bool) -> Canaries:
    """Toss a fair coin for each canary."""
    coins = torch.rand(count, generator=seeds.generator(seed, "audit", "coins"))
    return Canaries((coins < 0.5).numpy(), seed, clip_norm, opposite)


def busiest_rounds(
    plan: RoundPlan, clients: Sequence[str], rounds: int, state: ServerState
) -> frozenset[int]:
    """Return the rounds of the ordinary client that a public schedule selects most often."""
    selected: dict[str, set[int]] = {client: set() for client in clients}
    for number in range(1, rounds + 1):
        for client in plan.choose(clients, number, state):
            selected[client].add(number)
    busiest = max(selected.values(), key=len)
    return frozenset(busiest)


def canary_trainer(canaries: Canaries, size: int) -> LocalTrainer:
    """Return a trainer that gives a canary its update [size], and any other client a zero one."""

    def train(broadcast: Payload, turns: Sequence[ClientTurn]) -> Iterator[LocalResult]:
        for turn in turns:
            update = canaries.update(turn.client, size)
            yield LocalResult({DELTA: torch.zeros(size) if update is None else update}, 1.0, {})

    return train


class CanaryEngine:
    """An engine with the clients of another engine, and canaries.

    Args:
      ordinary: the engine of the ordinary clients.
      half: the client half of a canary, with `canary_trainer`.
      canaries: the canaries.
      idle: whether ordinary clients do not train, and this engine sends a zero update for each.
    """

    def __init__(
        self, ordinary: Engine, half: ClientHalf, canaries: Canaries, *, idle: bool = False
    ) -> None:
        self._ordinary = ordinary
        self._half = half
        self._names = canaries.names
        self._here = frozenset(ordinary.clients() if idle else ()) | frozenset(self._names)
        self._memories: dict[str, Memory] = {}

    def clients(self) -> Sequence[str]:
        """Return the ordinary clients, then the canaries that take part."""
        return (*self._ordinary.clients(), *self._names)

    def run(self, job: Job) -> Iterator[Reply | Failure]:
        """Run the ordinary clients' turns in their engine, and the canaries' here."""
        rest = tuple(client for client in job.cohort if client not in self._here)
        if rest:
            yield from self._ordinary.run(dataclasses.replace(job, cohort=rest))
        for client in job.cohort:
            if client in self._here:
                yield self._turn(job, client)

    def _turn(self, job: Job, client: str) -> Reply:
        memory = self._memories.get(client, {})
        seed = turn_seed(job.seed, job.round, client)
        turn = ClientTurn(job.round, client, NO_DATA, memory, seed, job.round - 1)
        blob, self._memories[client] = run_turn(self._half, job.broadcast[client], turn)
        return Reply(client, blob, 0.0)


def watch_rounds(
    start: tuple[ServerState, RoundPlan],
    engine: CanaryEngine,
    canaries: Canaries,
    rounds: int,
    on_round: Callable[[int], None] = lambda number: None,
) -> Projections:
    """Run rounds and project what is released on the directions of all canaries.

    If cohorts are sampled secretly, canaries are sampled like other clients. Under a public
    schedule they take part whenever the most often selected ordinary client does.

    Args:
      start: the state before round 1, and the plan of every round.
      engine: the engine that has the canaries.
      canaries: its canaries.
      rounds: number of rounds.
      on_round: called after each round with its number, from 1.

    Raises:
      RoundError: if a round fails, or a canary's reply could not be used.
    """
    state, plan = start
    ordinary = engine.clients()[: len(engine.clients()) - len(canaries.names)]
    numbers = range(1, rounds + 1)
    taking = frozenset(numbers)
    if not plan.sampler.secret:
        taking = busiest_rounds(plan, ordinary, rounds, state)
        joined = _joined(plan, ordinary, canaries, taking, state)
        plan = dataclasses.replace(plan, sampler=joined)
    recorder = _Recorder(canaries, taking, plan.expected_cohort / canaries.clip_norm)
    plan = dataclasses.replace(plan, algorithm=_watched(plan.algorithm, recorder))
    for number in numbers:
        state, record = run_round(state, plan, engine)
        _check_canaries(record)
        on_round(number)
    return recorder.projections()


def _check_canaries(record: RoundRecord) -> None:
    """Check that no canary's reply was refused or missing.

    Raises:
      RoundError: with the reason.
    """
    for client, reason in record.failures.items():
        if client.startswith(_PREFIX):
            raise RoundError(
                f"round {record.round}: the reply of canary client {client} could not be used: "
                f"{reason}. Audit with other wire.up stages, or a smaller privacy.clip_norm"
            )


def _joined(
    plan: RoundPlan,
    ordinary: Sequence[str],
    canaries: Canaries,
    taking: frozenset[int],
    state: ServerState,
) -> Sampler:
    """Return the plan's sampler of ordinary clients, with all canaries added in some rounds."""

    def sample(clients: Sequence[str], number: int) -> tuple[str, ...]:
        extra = canaries.names if number in taking else ()
        return (*plan.choose(ordinary, number, state), *extra)

    return sampler_of(sample)


def _watched(algorithm: Algorithm, recorder: _Recorder) -> Algorithm:
    """Return the algorithm that also records what it combines (local) or applies (central)."""

    def combine(updates: Iterable[ClientUpdate], context: RoundContext) -> Update:
        return algorithm.combine(recorder.replies(updates, context.round), context)

    def apply(state: ServerState, update: Update) -> ServerState:
        recorder.aggregate(update.delta, state.round + 1)
        return algorithm.apply(state, update)

    if recorder.canaries.opposite:
        return dataclasses.replace(algorithm, combine=combine)
    return dataclasses.replace(algorithm, apply=apply)


@dataclass
class _Recorder:
    """A recorder of projections and norms during the rounds."""

    canaries: Canaries
    taking: frozenset[int]
    scale: float
    rows: list[Floats] = field(default_factory=list)
    total: Tensor | None = None
    squares: Floats | None = None

    def aggregate(self, mean_P: Tensor, number: int) -> None:
        """Record a round's noised mean."""
        if number in self.taking:
            sum_P = mean_P * self.scale
            self.rows.append(self._along(sum_P))
            self.total = sum_P.double() if self.total is None else self.total + sum_P

    def replies(self, updates: Iterable[ClientUpdate], number: int) -> Iterator[ClientUpdate]:
        """Record the canaries' own replies, and pass all replies on."""
        count = len(self.canaries.present)
        row, squares = np.zeros(count), np.zeros(count)
        for update in updates:
            if update.client.startswith(_PREFIX):
                index = int(update.client.removeprefix(_PREFIX))
                reply_P = update.payload[DELTA] / self.canaries.clip_norm
                row[index] = float(reply_P @ self.canaries.direction(index, len(reply_P)))
                squares[index] = float(reply_P @ reply_P)
            yield update
        if number in self.taking:
            self.rows.append(row)
            self.squares = squares if self.squares is None else self.squares + squares

    def projections(self) -> Projections:
        """Return the projections and cosines of all recorded rounds."""
        projected_TK = np.stack(self.rows)
        if self.squares is not None:
            norms_K = np.sqrt(self.squares * len(self.rows))
            return Projections(projected_TK, projected_TK.sum(axis=0) / norms_K)
        assert self.total is not None
        norm = max(float(torch.linalg.vector_norm(self.total)), math.ulp(0.0))
        return Projections(projected_TK, projected_TK.sum(axis=0) / norm)

    def _along(self, flat_P: Tensor) -> Floats:
        count, size = len(self.canaries.present), len(flat_P)
        return np.array([float(flat_P @ self.canaries.direction(i, size)) for i in range(count)])
