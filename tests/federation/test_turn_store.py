"""Laws of the turn store: exactly once, whole or not at all, its owner's only."""

from __future__ import annotations

import functools
import stat

import pytest
import torch
from safetensors.torch import load_file, save_file

from fedpeft.core.errors import EngineError
from fedpeft.federation.turn_store import Kept, TurnStore
from fedpeft.runs.files import write_whole

WRITE = functools.partial(write_whole, mode=0o600)


def kept(turn: int, value: float = 1.0) -> Kept:
    return Kept(turn, f"request-{turn}", {"residual": torch.full((3,), value)}, b"reply %d" % turn)


def store(tmp_path) -> TurnStore:
    return TurnStore(tmp_path / "turns", WRITE)


def test_a_turn_starts_from_the_committed_one_whatever_came_after(tmp_path):
    place = store(tmp_path)
    place.keep("run", kept(1, 1.0), committed=0)
    place.keep("run", kept(2, 2.0), committed=1)
    assert place.start("run", 0) == {}
    assert place.start("run", 1)["residual"].tolist() == [1.0] * 3
    assert place.start("run", 2)["residual"].tolist() == [2.0] * 3


def test_the_last_reply_is_kept_with_its_request(tmp_path):
    place = store(tmp_path)
    assert place.last("run") is None
    place.keep("run", kept(4), committed=0)
    again = store(tmp_path).last("run")
    assert (again.turn, again.request, again.reply) == (4, "request-4", b"reply 4")


def test_what_no_request_can_name_is_deleted(tmp_path):
    place = store(tmp_path)
    for turn in (1, 2, 3):
        place.keep("run", kept(turn), committed=turn - 1)
    assert sorted(f.name for f in (tmp_path / "turns/run").iterdir()) == [
        "turn-00002.safetensors", "turn-00003.safetensors",
    ]  # fmt: skip
    assert place.start("run", 1) is None


def test_a_rest_of_a_crash_is_no_turn(tmp_path):
    place = store(tmp_path)
    place.keep("run", kept(1), committed=0)
    (tmp_path / "turns/run/turn-00002.safetensors.partial").write_bytes(b"half")
    assert store(tmp_path).last("run").turn == 1
    place.keep("run", kept(2), committed=1)
    assert not list((tmp_path / "turns/run").glob("*.partial"))


def test_files_are_their_owners_only(tmp_path):
    place = store(tmp_path)
    with place.locked():
        place.keep("run", kept(1), committed=0)
    modes = {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "turns").rglob("*")} | {
        stat.S_IMODE((tmp_path / "turns").stat().st_mode)
    }
    assert modes == {0o600, 0o700}


@pytest.mark.parametrize("where", [8, 200, -3])
def test_a_corrupt_file_is_refused(tmp_path, where):
    place = store(tmp_path)
    place.keep("run", kept(1), committed=0)
    file = tmp_path / "turns/run/turn-00001.safetensors"
    data = bytearray(file.read_bytes())
    data[where] ^= 1
    file.write_bytes(data)
    with pytest.raises(EngineError, match="memory of this client is corrupt"):
        place.start("run", 1)


def test_a_file_of_another_version_is_called_that(tmp_path):
    place = store(tmp_path)
    place.keep("run", kept(1), committed=0)
    file = tmp_path / "turns/run/turn-00001.safetensors"
    save_file(load_file(file), file, {"format": "fedpeft-turn-2"})
    with pytest.raises(EngineError, match="another version of fedpeft: its format is 'fedpeft-tur"):
        place.start("run", 1)


def test_runs_do_not_meet(tmp_path):
    place = store(tmp_path)
    place.keep("one", kept(1), committed=0)
    assert place.last("two") is None and place.start("two", 1) is None
