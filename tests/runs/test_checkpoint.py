from __future__ import annotations

import stat
from pathlib import Path

import pytest
import torch

from fedpeft.core.errors import RunFolderError
from fedpeft.runs.checkpoint import Checkpoint, checkpoints, read_checkpoint, write_checkpoint
from fedpeft.server.state import ServerState


def checkpoint(number: int = 3) -> Checkpoint:
    delta = torch.arange(12, dtype=torch.float32) / number
    state = ServerState(
        number, delta, torch.empty(0), {"first": delta, "stage.0.x": delta[:2]}, {"a b": 2, "ü": 3}
    )
    return Checkpoint(state, {"client-1\n0.top_k.residual": torch.ones(3)}, "digest")


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_read_gives_what_was_written(tmp_path: Path) -> None:
    ours = checkpoint()
    found = read_checkpoint(write_checkpoint(tmp_path / "c", ours))
    assert torch.equal(found.state.delta, ours.state.delta)
    assert found.state.buffers.shape == (0,)
    assert equal(found.state.memory, ours.state.memory)
    assert equal(found.memories, ours.memories)
    assert (found.state.round, found.state.committed) == (3, {"a b": 2, "ü": 3})
    assert found.experiment == "digest"


def test_newest_two_are_kept(tmp_path: Path) -> None:
    for number in (1, 2, 9, 10):
        write_checkpoint(tmp_path, checkpoint(number))
    assert [file.stem for file in checkpoints(tmp_path)] == ["round-00009", "round-00010"]


def test_only_the_owner_can_read(tmp_path: Path) -> None:
    file = write_checkpoint(tmp_path, checkpoint())
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_a_half_written_file_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "round-00007.safetensors.fedpeft.partial").write_bytes(b"half")
    assert checkpoints(tmp_path) == []


@pytest.mark.parametrize("place", [0, 9, 40, -1, -30])
def test_every_flipped_byte_is_noticed(tmp_path: Path, place: int) -> None:
    file = write_checkpoint(tmp_path, checkpoint())
    damaged = bytearray(file.read_bytes())
    damaged[place] ^= 1
    file.write_bytes(damaged)
    with pytest.raises(
        RunFolderError, match=r"round-00003\.safetensors: the checkpoint is corrupt"
    ):
        read_checkpoint(file)
    assert file.read_bytes() == damaged


def test_a_cut_file_is_named_with_what_to_do(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, checkpoint(2))
    file = write_checkpoint(tmp_path, checkpoint(3))
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(
        RunFolderError, match=r"move it away, and --resume goes on from round-00002"
    ):
        read_checkpoint(file)


def test_a_renamed_checkpoint_is_refused(tmp_path: Path) -> None:
    file = write_checkpoint(tmp_path, checkpoint())
    other = file.rename(tmp_path / "round-00004.safetensors")
    with pytest.raises(RunFolderError, match="it holds round 3, its name says another"):
        read_checkpoint(other)


def test_another_safetensors_file_is_refused(tmp_path: Path) -> None:
    import safetensors.torch

    file = tmp_path / "round-00001.safetensors"
    safetensors.torch.save_file({"delta": torch.ones(2)}, file)
    with pytest.raises(RunFolderError, match="its format is 'none'"):
        read_checkpoint(file)
