"""Privacy at client level, as a stage: what one client adds to the aggregate is bounded and noised.

    central   client: clip to C                        server: clip again, N(0, (zC)^2) on the sum
    local     client: clip to C, add N(0, (zC)^2)      server: nothing

The stage is the first of the chain: what a compressor does to a clipped update can lengthen it, so
the server clips again after decoding. The sum is divided by a constant of the run, the expected
cohort, and never by how many came. The noise is that of a secret root: of the server, kept in its
checkpoint (central), or of each client, kept in its memory (local, example).

References:
  McMahan et al., Learning Differentially Private Recurrent Language Models, ICLR 2018.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedpeft.client.turns import DELTA, ClientTurn, Memory, Payload
from fedpeft.core.deltas import DeltaSpec
from fedpeft.core.noise import clip, draw_root, gaussian, seeded_root, uniform
from fedpeft.server.state import Algorithm, ClientUpdate, RoundContext, ServerState, Update
from fedpeft.wire.stages import Stage

__all__ = [
    "SERVER_ROOT",
    "Guard",
    "central",
    "constant_denominator",
    "example",
    "local",
    "poisson_cohort",
    "with_server_root",
]

SERVER_ROOT = "stage.0.central.root"
"""Where the server's memory holds its secret root."""


@dataclass(frozen=True)
class Guard:
    """What a private stage needs.

    Attributes:
      clip_norm: bound C of one client's update, > 0; may be infinite where the noise is 0.
      noise_multiplier: z; the noise has deviation z C.
      reproducible: take the roots from the run's seed: for tests, not private.
    """

    clip_norm: float
    noise_multiplier: float
    reproducible: bool = False

    @property
    def deviation(self) -> float:
        """Standard deviation z C of the noise on the sum, or on one update."""
        return self.noise_multiplier * self.clip_norm if self.noise_multiplier else 0.0


def central(guard: Guard) -> Stage:
    """Clip each update on both sides and add noise once, at the server."""

    def encode(payload: Payload, memory: Memory, turn: ClientTurn) -> tuple[Payload, Memory]:
        return {DELTA: clip(payload[DELTA], guard.clip_norm)}, memory

    def decode(payload: Payload, turn: ClientTurn) -> Payload:
        return {DELTA: clip(payload[DELTA], guard.clip_norm)}

    def finish(update: Update, memory: Memory, context: RoundContext) -> tuple[Update, Memory]:
        spread = guard.deviation / context.expected_cohort
        noise_P = gaussian(memory["root"], update.delta.numel(), spread, "noise", context.round)
        return dataclasses.replace(update, delta=update.delta + noise_P), memory

    return Stage("central", encode=encode, decode=decode, finish=finish)


def local(guard: Guard) -> Stage:
    """Clip and noise each update on its client, before anyone else sees it."""

    def init(spec: DeltaSpec) -> Memory:
        return {} if guard.reproducible else {"root": draw_root()}

    def encode(payload: Payload, memory: Memory, turn: ClientTurn) -> tuple[Payload, Memory]:
        clipped_P = clip(payload[DELTA], guard.clip_norm)
        root = seeded_root(turn.seed) if guard.reproducible else memory["root"]
        noise_P = gaussian(root, clipped_P.numel(), guard.deviation, "noise", turn.round)
        return {DELTA: clipped_P + noise_P}, memory

    return Stage("local", init=init, encode=encode)


def example(guard: Guard) -> Stage:
    """Keep a client's secret root; its training has clipped and noised by then."""

    def init(spec: DeltaSpec) -> Memory:
        return {} if guard.reproducible else {"root": draw_root()}

    return Stage("example", init=init)


def constant_denominator(algorithm: Algorithm, spec: DeltaSpec) -> Algorithm:
    """Return the algorithm with a mean that divides by the expected cohort, a constant of the run.

    Every update counts once, whatever weight it claims; a round in which nobody answered gives
    zeros, which are noised like any other sum.
    """

    def combine(updates: Iterable[ClientUpdate], context: RoundContext) -> Update:
        total_P: Tensor = torch.zeros(spec.num_params, dtype=spec.dtype)
        for update in updates:
            total_P.add_(update.payload[DELTA])
        mean_P = total_P.div_(context.expected_cohort)
        return Update(mean_P, torch.empty(0), context.expected_cohort)

    return dataclasses.replace(algorithm, combine=combine)


def poisson_cohort(
    clients: Sequence[str], probability: float, *, root: Tensor, round: int
) -> tuple[str, ...]:
    """Draw each client by its own secret coin; a cohort may be empty.

    Args:
      clients: all, in a fixed order.
      probability: of each client, in (0, 1].
      root: the server's secret root [32].
      round: from 1.
    """
    coins = uniform(root, len(clients), "cohort", round)
    return tuple(clients[place] for place in np.flatnonzero(coins < probability).tolist())


def with_server_root(state: ServerState, *, seed: int | None) -> ServerState:
    """Return the state before round 1 with a secret root in its memory.

    Args:
      state: without a root.
      seed: None draws from the operating system; a number gives the root of a simulation.
    """
    root = draw_root() if seed is None else seeded_root(seed)
    return dataclasses.replace(state, memory={**state.memory, SERVER_ROOT: root})
