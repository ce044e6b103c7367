"""Checkpoints: one safetensors file with the whole state of a run after a round.

    checkpoints/round-00012.safetensors
      tensors    delta, buffers, root, server.* (algorithm and stages), client.* (clients' memories)
      metadata   format, round, committed, experiment, delta digest, digest of everything

Server state and client memories are in one file, so that they are committed in one atomic step.
The file may hold the server's secrets and is readable by its owner only.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from fedpeft.core.deltas import digest_of
from fedpeft.core.errors import RunFolderError
from fedpeft.runs.files import write_whole
from fedpeft.server.state import ServerState

_FORMAT = "fedpeft-checkpoint-1"
_VERSIONS = re.compile(r"fedpeft-checkpoint-\d+")
_KEPT = 2
_NAME = re.compile(r"round-(\d{5,})\.safetensors")


@dataclass(frozen=True)
class Checkpoint:
    """The state of a run after one of its rounds.

    Attributes:
      state: of the server.
      memories: of the clients, by the engine's names.
      experiment: digest of the experiment, without the keys that may change on resume.
    """

    state: ServerState
    memories: Mapping[str, Tensor]
    experiment: str


def checkpoints(folder: Path) -> list[Path]:
    """List the checkpoint files of a folder, oldest first; [] if there is no such folder."""
    files = (file for file in folder.glob("round-*") if _NAME.fullmatch(file.name))
    return sorted(files, key=_round_of)


def write_checkpoint(folder: Path, checkpoint: Checkpoint) -> Path:
    """Write a checkpoint and delete all but the newest two.

    Args:
      folder: `checkpoints/` of a run folder; made if it is missing.
      checkpoint: what to write.

    Returns:
      the file.
    """
    folder.mkdir(exist_ok=True)
    state = checkpoint.state
    file = folder / f"round-{state.round:05d}.safetensors"
    tensors = _tensors(checkpoint)
    metadata = {
        "format": _FORMAT,
        "round": str(state.round),
        "committed": json.dumps(dict(sorted(state.committed.items()))),
        "experiment": checkpoint.experiment,
        "delta_digest": digest_of(state.delta),
    }
    metadata["digest"] = _digest(tensors, metadata)
    write_whole(
        file,
        lambda partial: safetensors.torch.save_file(tensors, partial, metadata),
        mode=0o600,
    )
    prune(folder)
    return file


def prune(folder: Path) -> list[Path]:
    """Delete all but the newest two checkpoints of a folder; return those, oldest first."""
    files = checkpoints(folder)
    for old in files[:-_KEPT]:
        old.unlink()
    return files[-_KEPT:]


def read_checkpoint(file: Path) -> Checkpoint:
    """Read a checkpoint and verify its digest.

    Raises:
      RunFolderError: if it is incomplete, or not a checkpoint; the file is not changed.
    """
    try:
        with safetensors.safe_open(file, framework="pt") as opened:
            metadata = dict(opened.metadata() or {})
            tensors = {name: opened.get_tensor(name).clone() for name in opened.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise _corrupt(file, f"it is not a whole safetensors file ({error})") from error
    if metadata.get("format", "") != _FORMAT and _VERSIONS.fullmatch(metadata.get("format", "")):
        raise RunFolderError(
            f"{file}: the checkpoint has the format {metadata['format']!r} of another version of "
            f"fedpeft; this one reads {_FORMAT!r}. Nothing was changed; go on with the version in "
            "environment.json, or choose another --out"
        )
    if metadata.get("format") != _FORMAT:
        found = metadata.get("format", "none")
        raise _corrupt(file, f"its format is {found!r}, expected {_FORMAT!r}")
    claimed = metadata.pop("digest", "none")
    if claimed != _digest(tensors, metadata):
        raise _corrupt(file, "its content does not match the digest that was written with it")
    if int(metadata["round"]) != _round_of(file):
        raise _corrupt(file, f"it holds round {metadata['round']}, its name says another")
    state = ServerState(
        int(metadata["round"]),
        tensors["delta"],
        tensors["buffers"],
        _part(tensors, "server."),
        json.loads(metadata["committed"]),
        tensors.get("root", torch.empty(0, dtype=torch.uint8)),
    )
    return Checkpoint(state, _part(tensors, "client."), metadata["experiment"])


def _tensors(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """Return all tensors by name; copies, because safetensors refuses tensors that share memory."""
    state = checkpoint.state
    named = {"delta": state.delta, "buffers": state.buffers, "root": state.root}
    named |= {f"server.{name}": tensor for name, tensor in state.memory.items()}
    named |= {f"client.{name}": tensor for name, tensor in checkpoint.memories.items()}
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in named.items()}


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


def _digest(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    parts = {n: f"{t.dtype} {list(t.shape)} {digest_of(t.reshape(-1))}" for n, t in tensors.items()}
    text = json.dumps([parts, dict(metadata)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _round_of(file: Path) -> int:
    match = _NAME.fullmatch(file.name)
    return int(match.group(1)) if match else -1


def _corrupt(file: Path, problem: str) -> RunFolderError:
    others = [other.name for other in checkpoints(file.parent) if other != file]
    advice = f"goes on from {others[-1]}" if others else "starts from the beginning"
    return RunFolderError(
        f"{file}: the checkpoint is corrupt: {problem}. Nothing was changed; move it away, and "
        f"--resume {advice}"
    )
