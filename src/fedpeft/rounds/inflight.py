"""Turns under way, as a part of the server's memory.

    flight.turns        a table as JSON: client, number, version, end and broadcast of each turn
    flight.blob.<hash>  an encoded broadcast, shared by the turns that start from it

The server's memory consists of named tensors, so a checkpoint holds all of this and a resumed run
continues with the same turns. Only broadcasts are stored: a turn is a pure function, which is
computed when its reply is used.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

import torch
from torch import Tensor

from fedpeft.client.turns import Memory

_PREFIX = "flight."
_TABLE = "flight.turns"
_BLOB = "flight.blob."


@dataclass(frozen=True)
class Turn:
    """One turn under way.

    Attributes:
      client: name of the client.
      number: number of the draw that selected the client; the turn's seed depends on it.
      place: position of the client in that draw.
      version: round of the server state from which the turn started.
      end: end of the turn, in simulated seconds.
      reason: why there will be no reply; "" if there will be one.
      blob: the encoded broadcast.
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
    """All turns under way.

    Attributes:
      turns: the turns, in the order in which they started.
      draws: number of draws of clients so far.
    """

    turns: tuple[Turn, ...] = ()
    draws: int = 0


def pack_flight(flight: Flight) -> Memory:
    """Return the turns under way as named tensors."""
    blobs = {hashlib.sha256(turn.blob).hexdigest(): turn.blob for turn in flight.turns}
    names = {blob: name for name, blob in blobs.items()}
    rows = [{**vars(turn), "blob": names[turn.blob]} for turn in flight.turns]
    table = json.dumps({"draws": flight.draws, "turns": rows}).encode()
    stored = {_BLOB + name: _as_tensor(blob) for name, blob in blobs.items()}
    return {_TABLE: _as_tensor(table), **stored}


def unpack_flight(memory: Memory) -> Flight:
    """Return the turns that `pack_flight` wrote; none before the first round."""
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
    """Return a memory without the turns under way."""
    return {name: tensor for name, tensor in memory.items() if not name.startswith(_PREFIX)}


def _as_tensor(data: bytes) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


def _as_bytes(tensor: Tensor) -> bytes:
    return tensor.contiguous().numpy().tobytes()
