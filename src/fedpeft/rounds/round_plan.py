"""What does not change from round to round, and what is recorded of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from fedpeft.client.turns import ClientTurn, Memory, part_of, under
from fedpeft.core import seeds
from fedpeft.core.deltas import DeltaSpec
from fedpeft.core.errors import RoundError
from fedpeft.data.examples import NO_DATA
from fedpeft.rounds.attendance import Buffering
from fedpeft.server.availability import Conditions
from fedpeft.server.sampling import ClientMetrics, Draw, Sampler
from fedpeft.server.state import Algorithm, RoundContext, ServerState
from fedpeft.server.weights import Weights
from fedpeft.wire.stages import Stage

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
      weights: bounds of the clients' weights.
      metrics: names of the figures that clients report of their own training; no others are taken.
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
    metrics: frozenset[str] = frozenset({"loss"})
    weights: Weights = field(default_factory=Weights)

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
      bytes_down: bytes of the encoded broadcasts that were sent.
      bytes_up: bytes of all encoded replies that arrived, refused ones included.
      messages_down: number of these broadcasts.
      messages_up: number of these replies.
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
    messages_down: int
    messages_up: int
    seconds: float
    norms: tuple[float, ...] = ()
    signal_norm: float = 0.0
    simulation: Mapping[str, object] = field(default_factory=dict)


def turn_seed(root: int, round: int, client: str) -> int:
    """Return the seed of all randomness in one client's turn."""
    return seeds.derive(root, "turn", round, client)


def server_turn(context: RoundContext, client: str) -> ClientTurn:
    """Return a turn as the server knows it, without the client's data and memory."""
    number = context.turns.get(client, context.round)
    seed = turn_seed(context.seed, number, client)
    return ClientTurn(number, client, NO_DATA, {}, seed, context.round - 1)
