"""Canary clients: each sends one random direction, twice as long as the clip allows.

    ordinary clients ──> their engine ─┐
                                       ├─> the round as it is ──> what is released ──> · direction
    canaries ──> the client half ──────┘

A canary takes its turn through the same client half, messages and stages as anybody else; all that
is its own is the update. What the server releases is projected on the directions of all canaries,
also of those that took no part.

    central   a canary is in the federation or not; seen is the noised aggregate
    local     a canary sends its direction or the opposite; seen is its own noised reply

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
import numpy.typing as npt
import torch
from torch import Tensor

from fedpeft.client.turns import DELTA, ClientTurn, LocalResult, LocalTrainer, Memory, Payload
from fedpeft.core import seeds
from fedpeft.core.errors import RoundError
from fedpeft.data.examples import NO_DATA
from fedpeft.rounds.client_half import ClientHalf, run_turn
from fedpeft.rounds.job import Engine, Failure, Job, Reply
from fedpeft.rounds.round import RoundPlan, RoundRecord, run_round, turn_seed
from fedpeft.server.sampling import Sampler, sampler_of
from fedpeft.server.state import Algorithm, ClientUpdate, RoundContext, ServerState, Update

__all__ = [
    "Canaries",
    "CanaryEngine",
    "Sightings",
    "busiest_rounds",
    "canary_trainer",
    "draw_canaries",
    "watch_rounds",
]

_PREFIX = "audit-canary-"

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Canaries:
    """Who they are.

    Attributes:
      present: a fair coin for each, [K]: whether it takes part (central), or sends its direction
        and not the opposite (local).
      seed: of coins and directions.
      clip_norm: bound C; they send 2 C.
      opposite: the absent ones send the opposite instead of nothing.
    """

    present: npt.NDArray[np.bool_]
    seed: int
    clip_norm: float
    opposite: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """The clients that take part."""
        taking = range(len(self.present)) if self.opposite else np.flatnonzero(self.present)
        return tuple(f"{_PREFIX}{number}" for number in taking)

    def direction(self, number: int, size: int) -> Tensor:
        """Return a canary's unit vector [size], uniform on the sphere; made anew at each call."""
        generator = seeds.generator(self.seed, "audit", "direction", number)
        drawn = torch.randn(size, generator=generator)
        unit: Tensor = drawn / torch.linalg.vector_norm(drawn)
        return unit

    def update(self, client: str, size: int) -> Tensor | None:
        """Return what a client sends before the clip [size]; None for an ordinary client."""
        if not client.startswith(_PREFIX):
            return None
        number = int(client.removeprefix(_PREFIX))
        sign = 1.0 if self.present[number] else -1.0
        return self.direction(number, size) * (2 * sign * self.clip_norm)


@dataclass(frozen=True)
class Sightings:
    """What the directions show of what was released.

    Attributes:
      seen_TK: projection in each round in which canaries may take part, in clip bounds; a round's
        aggregate is the noised sum.
      cosines_K: of each direction with the sum of the aggregates (central), or with the canary's
        own replies one after the other (local).
    """

    seen_TK: Floats
    cosines_K: Floats


def draw_canaries(count: int, *, seed: int, clip_norm: float, opposite: bool) -> Canaries:
    """Toss a fair coin for each canary."""
    coins = torch.rand(count, generator=seeds.generator(seed, "audit", "coins"))
    return Canaries((coins < 0.5).numpy(), seed, clip_norm, opposite)


def busiest_rounds(
    plan: RoundPlan, clients: Sequence[str], rounds: int, state: ServerState
) -> frozenset[int]:
    """Return the rounds of the ordinary client that a public schedule asks most often."""
    asked: dict[str, set[int]] = {client: set() for client in clients}
    for number in range(1, rounds + 1):
        for client in plan.choose(clients, number, state):
            asked[client].add(number)
    most = max(len(numbers) for numbers in asked.values())
    return frozenset(next(numbers for numbers in asked.values() if len(numbers) == most))


def canary_trainer(canaries: Canaries, size: int) -> LocalTrainer:
    """Return training that gives a canary its update [size], and anyone else a zero one."""

    def train(broadcast: Payload, turns: Sequence[ClientTurn]) -> Iterator[LocalResult]:
        for turn in turns:
            update = canaries.update(turn.client, size)
            yield LocalResult({DELTA: torch.zeros(size) if update is None else update}, 1.0, {})

    return train


class CanaryEngine:
    """An engine whose clients are those of another one, and canaries.

    Args:
      ordinary: where ordinary clients live.
      half: the client half of a canary, with `canary_trainer`.
      canaries: who they are.
      idle: ordinary clients are not asked to train: they send a zero update, from here.
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
        """Ask ordinary clients where they live, and canaries here."""
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
) -> Sightings:
    """Run rounds and project what is released on the directions of all canaries.

    Where cohorts are drawn from a secret, canaries are clients like others. Under a public schedule
    they take part whenever the busiest ordinary client does.

    Args:
      start: the state before round 1, and the plan of every round.
      engine: with the canaries.
      canaries: the same.
      rounds: how many.
      on_round: called after each with its number, from 1.

    Raises:
      RoundError: if a round fails, or a canary's reply in it.
    """
    state, plan = start
    ordinary = engine.clients()[: len(engine.clients()) - len(canaries.names)]
    numbers = range(1, rounds + 1)
    taking = frozenset(numbers)
    if not plan.sampler.secret:
        taking = busiest_rounds(plan, ordinary, rounds, state)
        joined = _joined(plan, ordinary, canaries, taking, state)
        plan = dataclasses.replace(plan, sampler=joined)
    ledger = _Ledger(canaries, taking, plan.expected_cohort / canaries.clip_norm)
    plan = dataclasses.replace(plan, algorithm=_watched(plan.algorithm, ledger))
    for number in numbers:
        state, record = run_round(state, plan, engine)
        _check_heard(record)
        on_round(number)
    return ledger.sightings()


def _check_heard(record: RoundRecord) -> None:
    """Refuse to go on where a canary was not heard.

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


def _watched(algorithm: Algorithm, ledger: _Ledger) -> Algorithm:
    """Return the algorithm, with what it combines (local) or applies (central) written down."""

    def combine(updates: Iterable[ClientUpdate], context: RoundContext) -> Update:
        return algorithm.combine(ledger.replies(updates, context.round), context)

    def apply(state: ServerState, update: Update) -> ServerState:
        ledger.aggregate(update.delta, state.round + 1)
        return algorithm.apply(state, update)

    if ledger.canaries.opposite:
        return dataclasses.replace(algorithm, combine=combine)
    return dataclasses.replace(algorithm, apply=apply)


@dataclass
class _Ledger:
    """Projections and norms, while rounds go by."""

    canaries: Canaries
    taking: frozenset[int]
    scale: float
    rows: list[Floats] = field(default_factory=list)
    total: Tensor | None = None
    squares: Floats | None = None

    def aggregate(self, mean_P: Tensor, number: int) -> None:
        """Take a round's noised mean."""
        if number in self.taking:
            sum_P = mean_P * self.scale
            self.rows.append(self._along(sum_P))
            self.total = sum_P.double() if self.total is None else self.total + sum_P

    def replies(self, updates: Iterable[ClientUpdate], number: int) -> Iterator[ClientUpdate]:
        """Take the canaries' own replies while they pass by."""
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

    def sightings(self) -> Sightings:
        """Return what was seen."""
        seen_TK = np.stack(self.rows)
        if self.squares is not None:
            norms_K = np.sqrt(self.squares * len(self.rows))
            return Sightings(seen_TK, seen_TK.sum(axis=0) / norms_K)
        assert self.total is not None
        norm = max(float(torch.linalg.vector_norm(self.total)), math.ulp(0.0))
        return Sightings(seen_TK, seen_TK.sum(axis=0) / norm)

    def _along(self, flat_P: Tensor) -> Floats:
        count, size = len(self.canaries.present), len(flat_P)
        return np.array([float(flat_P @ self.canaries.direction(i, size)) for i in range(count)])
