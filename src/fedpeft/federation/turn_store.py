"""A client's memory on its own disk, before and after its last turn: exactly once after any crash.

    <folder>/<run>/turn-00004.safetensors    the result of turn 4: memory, and the reply
    <folder>/<run>/turn-00005.safetensors    the result of turn 5, received by the server or not

A request names the last turn that the server has received. The client starts from the memory after
that turn, and turns that no later request can name are deleted. A repeated request gets the stored
reply. Files are written atomically and only their owner can read them: they may hold a secret root.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from filelock import FileLock
from safetensors import SafetensorError
from torch import Tensor

from fedpeft.client.turns import Memory
from fedpeft.core.errors import EngineError

_FORMAT = "fedpeft-turn-1"
_VERSIONS = re.compile(r"fedpeft-turn-\d+")
_SYSTEM_ERROR = re.compile(r"os error (\d+)")
_NAME = re.compile(r"turn-(\d{5,})\.safetensors")
_MEMORY, _REPLY = "memory.", "reply"

Write = Callable[[Path, Callable[[Path], None]], None]
"""Writes a file atomically: (name, function that fills a temporary file)."""


@dataclass(frozen=True)
class Kept:
    """The stored result of a turn.

    Attributes:
      turn: its number.
      request: digest of the request.
      memory: the client's memory after the turn.
      reply: the encoded reply, as it was sent.
    """

    turn: int
    request: str
    memory: Memory
    reply: bytes


class TurnStore:
    """The stored turns of one client, by run.

    Args:
      folder: this client's folder; made with mode 0700 if it is missing.
      write: writes a file atomically, readable by its owner only.
    """

    def __init__(self, folder: Path, write: Write) -> None:
        self._folder = folder
        self._write = write

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes of this client out of the block."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with FileLock(self._folder / ".lock", mode=0o600):
            yield

    def last(self, run: str) -> Kept | None:
        """Return the result of the last turn in a run; None before the first.

        Raises:
          EngineError: if its file is corrupt, or written by another version.
        """
        turns = self._turns(run)
        return self._read(run, turns[-1]) if turns else None

    def start(self, run: str, committed: int) -> Memory | None:
        """Return the memory after a turn: empty for turn 0, None if that turn is not stored.

        Raises:
          EngineError: if its file is corrupt, or written by another version.
        """
        if committed == 0:
            return {}
        return self._read(run, committed).memory if committed in self._turns(run) else None

    def keep(self, run: str, kept: Kept, *, committed: int) -> None:
        """Write a turn's result, and delete all turns but this one and the committed one.

        Args:
          run: the run id.
          kept: the turn's result.
          committed: the turn that it started from.
        """
        folder = self._folder / run
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for rest in folder.glob("*.partial"):
            rest.unlink()
        tensors = {_MEMORY + name: _copy(tensor) for name, tensor in kept.memory.items()}
        tensors[_REPLY] = torch.frombuffer(bytearray(kept.reply), dtype=torch.uint8)
        notes = {"format": _FORMAT, "turn": str(kept.turn), "request": kept.request}
        notes["digest"] = _digest(tensors)
        self._write(
            self._file(run, kept.turn),
            lambda partial: _save(tensors, partial, notes),
        )
        for turn in self._turns(run):
            if turn not in (committed, kept.turn):
                self._file(run, turn).unlink()

    def _turns(self, run: str) -> list[int]:
        names = (_NAME.fullmatch(file.name) for file in (self._folder / run).glob("turn-*"))
        return sorted(int(match.group(1)) for match in names if match)

    def _file(self, run: str, turn: int) -> Path:
        return self._folder / run / f"turn-{turn:05d}.safetensors"

    def _read(self, run: str, turn: int) -> Kept:
        file = self._file(run, turn)
        try:
            with safetensors.safe_open(file, framework="pt") as opened:
                notes = dict(opened.metadata() or {})
                tensors = {name: opened.get_tensor(name).clone() for name in opened.keys()}  # noqa: SIM118
        except (SafetensorError, OSError, ValueError) as error:
            raise _corrupt(file, f"it is not a complete safetensors file ({error})") from error
        found = notes.get("format", "")
        if found != _FORMAT and _VERSIONS.fullmatch(found):
            raise EngineError(
                f"{file}: the memory of this client was written by another version of fedpeft: its "
                f"format is {found!r}, this one reads {_FORMAT!r}. Nothing was changed; go on with "
                "that version, or leave this run"
            )
        if found != _FORMAT or notes.get("digest") != _digest(tensors):
            raise _corrupt(file, "its content does not match the digest that was written with it")
        reply = tensors.pop(_REPLY).numpy().tobytes()
        memory = {name.removeprefix(_MEMORY): tensor for name, tensor in tensors.items()}
        return Kept(turn, notes["request"], memory, reply)


def _save(tensors: Mapping[str, Tensor], file: Path, notes: dict[str, str]) -> None:
    """Write a safetensors file.

    Raises:
      OSError: if the disk does not take it; the library has an error of its own for that.
    """
    try:
        safetensors.torch.save_file(dict(tensors), file, notes)
    except SafetensorError as error:
        number = _SYSTEM_ERROR.search(str(error))
        if number is None:
            raise
        code = int(number.group(1))
        raise OSError(code, os.strerror(code), str(file)) from error


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous().clone()


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}\0{tensor.dtype}\0{list(tensor.shape)}\0".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _corrupt(file: Path, problem: str) -> EngineError:
    return EngineError(
        f"{file}: the memory of this client is corrupt: {problem}. Nothing was changed; put back a "
        "copy of the file, or leave this run"
    )
