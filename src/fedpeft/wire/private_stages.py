"""Privacy at client level, as a stage: clips one client's contribution and adds noise.

    central   client: clip to C                        server: clip again, N(0, (zC)^2) on the sum
    local     client: clip to C, add N(0, (zC)^2)      server: nothing

The stage is the first of the chain: a compressor can increase the norm of a clipped update, so the
server clips again after decoding. An update that is not finite counts as zeros on both sides. The
noise is drawn from a secret root: the server's, which is in its checkpoint (central), or each
client's own, which is in its memory (local). It is keyed by a digest of all that the noised vector
depends on, so that a repeated round repeats its noise only where it repeats its values: the
difference of two releases is never free of noise.

References:
  McMahan et al., Learning Differentially Private Recurrent Language Models, ICLR 2018.
"""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass

from torch import Tensor

from fedpeft.client.turns import DELTA, ClientTurn, Memory, Payload
from fedpeft.core.deltas import DeltaSpec
from fedpeft.core.noise import bounded, draw_root, gaussian, seeded_root
from fedpeft.server.state import RoundContext, Update
from fedpeft.wire.stages import Stage


@dataclass(frozen=True)
class Guard:
    """The clip bound and the noise of a private stage.

    Attributes:
      clip_norm: L2 bound C of one client's update, > 0; may be infinite where the noise is 0.
      noise_multiplier: z; the noise has deviation z C.
      reproducible: whether roots come from the run's seed: for tests, not private.
    """

    clip_norm: float
    noise_multiplier: float
    reproducible: bool = False

    @property
    def deviation(self) -> float:
        """The standard deviation z C of the noise on the sum, or on one update."""
        return self.noise_multiplier * self.clip_norm if self.noise_multiplier else 0.0

    def key(self, clean_P: Tensor, *parts: object) -> tuple[str, ...]:
        """Return the digest that keys the noise on a vector; () where noise follows from the seed.

        Args:
          clean_P: what the noise covers, [P].
          parts: everything else that it depends on.
        """
        if self.reproducible:
            return ()
        digest = hashlib.sha256(repr((self, *parts)).encode())
        digest.update(clean_P.detach().cpu().contiguous().numpy().data)
        return (digest.hexdigest(),)


def central(guard: Guard) -> Stage:
    """Clip each update on both sides and add noise once, at the server."""

    def encode(payload: Payload, memory: Memory, turn: ClientTurn) -> tuple[Payload, Memory]:
        return {DELTA: bounded(payload[DELTA], guard.clip_norm)}, memory

    def decode(payload: Payload, turn: ClientTurn) -> Payload:
        return {DELTA: bounded(payload[DELTA], guard.clip_norm)}

    def finish(update: Update, memory: Memory, context: RoundContext) -> tuple[Update, Memory]:
        spread = guard.deviation / context.expected_cohort
        key = guard.key(update.delta, context.round, context.expected_cohort, context.origin)
        path: tuple[str | int, ...] = ("noise", context.round, *key)
        noise_P = gaussian(context.root, update.delta.numel(), spread, *path)
        return dataclasses.replace(update, delta=update.delta + noise_P), memory

    return Stage("central", encode=encode, decode=decode, finish=finish, keeps_shapes=True)


def local(guard: Guard) -> Stage:
    """Clip each update and add noise on its client, before the update leaves it."""

    def init(spec: DeltaSpec) -> Memory:
        return {} if guard.reproducible else {"root": draw_root()}

    def encode(payload: Payload, memory: Memory, turn: ClientTurn) -> tuple[Payload, Memory]:
        clipped_P = bounded(payload[DELTA], guard.clip_norm)
        root = seeded_root(turn.seed) if guard.reproducible else memory["root"]
        facts = (turn.round, turn.client, turn.seed, turn.version, turn.origin)
        path: tuple[str | int, ...] = ("noise", turn.round, *guard.key(clipped_P, *facts))
        noise_P = gaussian(root, clipped_P.numel(), guard.deviation, *path)
        return {DELTA: clipped_P + noise_P}, memory

    return Stage("local", init=init, encode=encode, keeps_shapes=True)
