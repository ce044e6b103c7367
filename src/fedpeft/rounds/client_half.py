"""The client's half of a round, from bytes to bytes; the same code on every engine and at sites.

broadcast -> decode -> stages (down) -> local training -> stages (up) -> encode -> reply
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from fedpeft.client.turns import BUFFERS, ClientTurn, LocalResult, LocalTrainer, Memory, Payload
from fedpeft.core.deltas import DeltaSpec
from fedpeft.core.errors import DeltaMismatchError
from fedpeft.core.text import plain
from fedpeft.rounds.gate import open_message
from fedpeft.wire import messages
from fedpeft.wire.forms import form_of
from fedpeft.wire.stages import Stage, encode_all, start_memory


@dataclass(frozen=True)
class ClientHalf:
    """The trainer, the stages and the delta's spec of a client.

    Attributes:
      trainer: local training.
      up: stages from client to server.
      down: stages from server to client.
      spec: spec of the delta, checked on every broadcast.
      private: whether the reply holds nothing but the stages' output: its weight is 1, and it has
        no metrics.
      buffer_spec: spec of the buffers that are sent, checked like the delta; None: any number of
        them is taken.
    """

    trainer: LocalTrainer
    up: Sequence[Stage]
    down: Sequence[Stage]
    spec: DeltaSpec
    private: bool = False
    buffer_spec: DeltaSpec | None = None


def run_turn(half: ClientHalf, broadcast: bytes, turn: ClientTurn) -> tuple[bytes, Memory]:
    """Take one turn: return the encoded reply and the client's new memory.

    An empty memory means that this is the client's first turn.

    Raises:
      DeltaMismatchError: if the broadcast does not fit this client's model.
    """
    (taken,) = run_turns(half, broadcast, [turn])
    return taken


def run_turns(
    half: ClientHalf, broadcast: bytes, turns: Sequence[ClientTurn]
) -> list[tuple[bytes, Memory]]:
    """Take the turns of clients that start from the same broadcast, and train them together.

    Memory, stages and reply are each client's own. The output of a stage from server to client must
    not depend on the turn.

    Raises:
      DeltaMismatchError: if the broadcast does not fit this client's model.
    """
    payload = _opened(half, broadcast, turns[0])
    memories = [turn.memory or start_memory(half.up, half.spec) for turn in turns]
    origin = hashlib.sha256(broadcast).hexdigest()
    pairs = zip(turns, memories, strict=True)
    ready = [replace(turn, memory=memory, origin=origin) for turn, memory in pairs]
    taken = zip(ready, memories, half.trainer(payload, ready), strict=True)
    return [_reply(half, turn, memory, result) for turn, memory, result in taken]


def _opened(half: ClientHalf, broadcast: bytes, turn: ClientTurn) -> Payload:
    """Open a broadcast through the gate.

    Raises:
      DeltaMismatchError: if anything is wrong with it.
    """
    try:
        buffer_spec = half.buffer_spec or _claimed_buffers(broadcast)
        form = form_of(half.down, half.spec, buffer_spec)
        return open_message(broadcast, form, turn, advice="the server's training diverged")[0]
    except DeltaMismatchError:
        raise
    except Exception as error:  # a server may send anything, too
        raise DeltaMismatchError(f"broadcast refused: {plain(error)}") from error


def _claimed_buffers(broadcast: bytes) -> DeltaSpec | None:
    """Return a spec of as many buffers as a broadcast holds."""
    found = messages.decode(broadcast)[0].get(BUFFERS)
    return None if found is None else DeltaSpec((BUFFERS,), ((found.numel(),),), found.dtype)


def _reply(
    half: ClientHalf, turn: ClientTurn, memory: Memory, result: LocalResult
) -> tuple[bytes, Memory]:
    encoded, kept = encode_all(half.up, result.payload, memory, turn)
    notes = PRIVATE_NOTES if half.private else reply_notes(result.weight, result.metrics)
    return messages.encode(encoded, notes), {**result.memory, **kept}


def reply_notes(weight: float, metrics: Mapping[str, float]) -> dict[str, str]:
    """Return a reply's weight and metrics as text of constant length, which plans can count."""
    figures = {"weight": weight} | {f"metric.{name}": value for name, value in metrics.items()}
    return {name: f"{value:+.9e}" for name, value in figures.items()}


PRIVATE_NOTES: Mapping[str, str] = reply_notes(1.0, {})
"""The notes of a private reply, the same for every client."""
