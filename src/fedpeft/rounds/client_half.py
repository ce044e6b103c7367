"""The client's half of a round: bytes in, bytes out. The same code runs wherever a client lives.

broadcast bytes -> decode -> way-down stages -> local training -> way-up stages -> encode -> bytes
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from fedpeft.client.turns import DELTA, ClientTurn, LocalResult, LocalTrainer, Memory
from fedpeft.core.deltas import DeltaSpec
from fedpeft.wire import messages
from fedpeft.wire.stages import Stage, decode_all, encode_all, start_memory

__all__ = ["PRIVATE_NOTES", "ClientHalf", "reply_notes", "run_turn", "run_turns"]


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
    (taken,) = run_turns(half, broadcast, [turn])
    return taken


def run_turns(
    half: ClientHalf, broadcast: bytes, turns: Sequence[ClientTurn]
) -> list[tuple[bytes, Memory]]:
    """Take the turns of clients that start from one broadcast, training them together.

    All else is each client's own: its memory, the stages, the reply. What a stage on the way down
    makes of the broadcast must not depend on the turn.

    Raises:
      DeltaMismatchError: if the broadcast does not fit this client's model.
    """
    tensors, _ = messages.decode(broadcast)
    payload = decode_all(half.down, tensors, turns[0])
    half.spec.check_flat(payload[DELTA])
    memories = [turn.memory or start_memory(half.up, half.spec) for turn in turns]
    ready = [replace(t, memory=memory) for t, memory in zip(turns, memories, strict=True)]
    taken = zip(turns, memories, half.trainer(payload, ready), strict=True)
    return [_reply(half, turn, memory, result) for turn, memory, result in taken]


def _reply(
    half: ClientHalf, turn: ClientTurn, memory: Memory, result: LocalResult
) -> tuple[bytes, Memory]:
    encoded, kept = encode_all(half.up, result.payload, memory, turn)
    notes = PRIVATE_NOTES if half.private else reply_notes(result.weight, result.metrics)
    return messages.encode(encoded, notes), {**result.memory, **kept}


def reply_notes(weight: float, metrics: Mapping[str, float]) -> dict[str, str]:
    """Write what a reply says beside its tensors; always as long, so that a plan can count it."""
    figures = {"weight": weight} | {f"metric.{name}": value for name, value in metrics.items()}
    return {name: f"{value:+.9e}" for name, value in figures.items()}


PRIVATE_NOTES: Mapping[str, str] = reply_notes(1.0, {})
"""What a private reply says beside its tensors: the same words from every client."""
