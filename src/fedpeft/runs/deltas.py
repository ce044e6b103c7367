"""The deltas of all rounds, kept in the run folder if `run.keep_deltas` is set.

    deltas/round-00000.safetensors     before round 1
    deltas/round-00012.safetensors     after round 12; names as in delta.safetensors

A round's delta is written before its checkpoint: after a crash in between it is written again.
"""

from __future__ import annotations

from pathlib import Path

import safetensors
from safetensors import SafetensorError
from torch import Tensor

from fedpeft.build.run import BuiltRun
from fedpeft.core.deltas import digest_of
from fedpeft.core.errors import RunFolderError
from fedpeft.runs.files import remove_temporary
from fedpeft.runs.folder import RunFolder, write_delta
from fedpeft.server.state import ServerState
from fedpeft.tuning.tuned import TunedModel


def delta_file(folder: RunFolder, round: int) -> Path:
    """Return the file of a round's delta; round 0 is the start."""
    return folder.deltas / f"round-{round:05d}.safetensors"


def start_deltas(built: BuiltRun, folder: RunFolder, state: ServerState) -> None:
    """Write the delta before round 1, if this run keeps deltas and has done no round."""
    if built.experiment.run.keep_deltas and state.round == 0:
        folder.deltas.mkdir(exist_ok=True)
        keep_delta(built, folder, state)
    elif folder.deltas.exists():
        remove_temporary(folder.deltas)


def keep_delta(built: BuiltRun, folder: RunFolder, state: ServerState) -> None:
    """Write a state's delta, if this run keeps deltas."""
    if built.experiment.run.keep_deltas:
        file, metadata = delta_file(folder, state.round), {"round": str(state.round)}
        write_delta(file, built.plan, state, metadata)


def read_kept(folder: RunFolder, tuned: TunedModel, round: int) -> Tensor:
    """Read a round's delta as a flat buffer [num_params].

    Raises:
      RunFolderError: if the file is missing, broken or changed.
      DeltaMismatchError: if it does not fit the model.
    """
    file = delta_file(folder, round)
    try:
        with safetensors.safe_open(file, framework="pt") as opened:
            claimed = (opened.metadata() or {}).get("delta_digest")
            flat = tuned.spec.flatten({name: opened.get_tensor(name) for name in tuned.spec.names})
    except (SafetensorError, OSError) as error:
        raise RunFolderError(
            f"{file}: cannot be read: {error}. Run the experiment again with run.keep_deltas = true"
        ) from error
    if claimed != digest_of(flat):
        raise RunFolderError(
            f"{file}: its delta does not match the digest written with it; run the experiment again"
        )
    return flat
