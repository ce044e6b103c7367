"""Turns under way, as a part of the server's memory.

    flight.turns        a table as JSON: who, which turn, from which version, until when, which blob
    flight.blob.<hash>  a broadcast as it was sent; turns that got the same one share it

A server's memory is named tensors, so a checkpoint holds all of this and a resumed run goes on with
the same turns. Only broadcasts are kept: a turn is a pure function, taken when its reply is used.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

import torch
from torch import Tensor

from fedpeft.client.turns import Memory

__all__ = ["Flight", "Turn", "pack_flight", "unpack_flight", "without_flight"]

_PREFIX = "flight."
_TABLE = "flight.turns"
_BLOB = "flight.blob."


@dataclass(frozen=True)
class Turn:
    """One turn under way.

    Attributes:
      client: who takes it.
      number: of the draw that chose the client; gives the turn's seed.
      place: in that draw.
      version: round of the server state that the turn started from.
      end: when it ends, in simulated seconds.
      reason: why there will be no reply; "" if there will be one.
      blob: the broadcast, as encoded.
    """

    client: str
    number: int
    place: int
    version: int
    end: float
    reason: str
    blob: bytes


@dataclass(frozen=True)
class Flight:
    """All that is under way.

    Attributes:
      turns: in the order in which they started.
      draws: how often clients have been drawn.
    """

    turns: tuple[Turn, ...] = ()
    draws: int = 0


def pack_flight(flight: Flight) -> Memory:
    """Write what is under way as named tensors."""
    blobs = {hashlib.sha256(turn.blob).hexdigest(): turn.blob for turn in flight.turns}
    names = {blob: name for name, blob in blobs.items()}
    rows = [{**vars(turn), "blob": names[turn.blob]} for turn in flight.turns]
    table = json.dumps({"draws": flight.draws, "turns": rows}).encode()
    stored = {_BLOB + name: _as_tensor(blob) for name, blob in blobs.items()}
    return {_TABLE: _as_tensor(table), **stored}


def unpack_flight(memory: Memory) -> Flight:
    """Read what `pack_flight` wrote; nothing is under way before the first round."""
    if _TABLE not in memory:
        return Flight()
    table = json.loads(_as_bytes(memory[_TABLE]))
    blobs = {
        name.removeprefix(_BLOB): _as_bytes(tensor)
        for name, tensor in memory.items()
        if name.startswith(_BLOB)
    }
    turns = tuple(Turn(**row | {"blob": blobs[row["blob"]]}) for row in table["turns"])
    return Flight(turns, table["draws"])


def without_flight(memory: Memory) -> Memory:
    """Return a memory without what is under way."""
    return {name: tensor for name, tensor in memory.items() if not name.startswith(_PREFIX)}


def _as_tensor(data: bytes) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


def _as_bytes(tensor: Tensor) -> bytes:
    return tensor.contiguous().numpy().tobytes()
