"""The client's half of a round: bytes in, bytes out. The same code runs wherever a client lives.

broadcast bytes -> decode -> way-down stages -> local training -> way-up stages -> encode -> bytes
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from fedpeft.client.turns import DELTA, ClientTurn, LocalTrainer, Memory
from fedpeft.core.deltas import DeltaSpec
from fedpeft.wire import messages
from fedpeft.wire.stages import Stage, decode_all, encode_all, start_memory

__all__ = ["PRIVATE_NOTES", "ClientHalf", "reply_notes", "run_turn"]


@dataclass(frozen=True)
class ClientHalf:
    """What a client needs to take its turns.

    Attributes:
      trainer: local training.
      up: stages from client to server.
      down: stages from server to client.
      spec: of the delta, checked on every broadcast.
      private: nothing leaves outside the stages: weight 1, no metrics.
    """

    trainer: LocalTrainer
    up: Sequence[Stage]
    down: Sequence[Stage]
    spec: DeltaSpec
    private: bool = False


def run_turn(half: ClientHalf, broadcast: bytes, turn: ClientTurn) -> tuple[bytes, Memory]:
    """Take one turn: return the encoded reply and the client's new memory.

    A memory that is empty means a client that was never asked before.

    Raises:
      DeltaMismatchError: if the broadcast does not fit this client's model.
    """
    tensors, _ = messages.decode(broadcast)
    payload = decode_all(half.down, tensors, turn)
    half.spec.check_flat(payload[DELTA])
    memory = turn.memory or start_memory(half.up, half.spec)
    (result,) = half.trainer(payload, [replace(turn, memory=memory)])
    encoded, kept = encode_all(half.up, result.payload, memory, turn)
    notes = PRIVATE_NOTES if half.private else reply_notes(result.weight, result.metrics)
    return messages.encode(encoded, notes), {**result.memory, **kept}


def reply_notes(weight: float, metrics: Mapping[str, float]) -> dict[str, str]:
    """Write what a reply says beside its tensors; always as long, so that a plan can count it."""
    figures = {"weight": weight} | {f"metric.{name}": value for name, value in metrics.items()}
    return {name: f"{value:+.9e}" for name, value in figures.items()}


PRIVATE_NOTES: Mapping[str, str] = reply_notes(1.0, {})
"""What a private reply says beside its tensors: the same words from every client."""
