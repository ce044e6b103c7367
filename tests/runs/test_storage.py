"""A disk that is full or read-only: one sentence with the path, an exit code, the state kept."""

from __future__ import annotations

import errno
import os
import stat

import pytest

import fedpeft.runs.files as files
import fedpeft.runs.loop as loop
from fedpeft.cli.app import main
from fedpeft.core.errors import StorageError
from fedpeft.runs.files import write_text, write_whole

TINY = (
    "model.name=preset:tiny-vit", "data.partition.clients=4", "federation.rounds=2",
    "federation.clients_per_round=2", "client.epochs=1", "engine.workers=1",
)  # fmt: skip


@pytest.fixture
def command(capsys):
    def run(*words):
        with pytest.raises(SystemExit) as end:
            main([str(word) for word in words])
        return int(end.value.code or 0), capsys.readouterr().err

    return run


def sets():
    return [word for each in TINY for word in ("--set", each)]


def test_a_full_disk_stops_a_run_in_one_sentence_and_it_goes_on(command, monkeypatch, tmp_path):
    right, out = loop.write_checkpoint, tmp_path / "run"

    def full(folder, checkpoint):
        if checkpoint.state.round == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))
        right(folder, checkpoint)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "write_checkpoint", full)
        code, words = command("run", *sets(), "--out", out)
    (line,) = [line for line in words.splitlines() if line.startswith("error")]
    assert code == StorageError.exit_code == 4
    assert f"{out}/checkpoints: cannot be written after round 2: No space left" in line
    assert "Traceback" not in words
    code, _ = command("run", *sets(), "--out", out, "--resume")
    assert code == 0 and (out / "summary.json").exists()


def test_an_out_that_cannot_be_made_is_one_sentence(command, tmp_path):
    (tmp_path / "file").write_text("x")
    code, words = command("run", *sets(), "--out", tmp_path / "file" / "run")
    assert code == 2 and words.splitlines()[-1].startswith("error: ")
    assert str(tmp_path / "file") in words and "Traceback" not in words


def test_nothing_to_resume_is_said_and_starts_no_quickstart(command, tmp_path):
    code, words = command("run", "--resume", "--out", tmp_path / "typo")
    assert code == 2 and "there is no run to go on with" in words
    assert not (tmp_path / "typo").exists()


def test_home_and_a_byte_order_mark_are_understood(command, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    lines = ['name = "here"', "[federation]", "rounds = 1"]
    (tmp_path / "e.toml").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    small = ("federation.clients_per_round=2", "client.epochs=1", *TINY[:2])
    options = [word for each in small for word in ("--set", each)]
    code, words = command("run", "~/e.toml", *options, "--out", "~/x", "--resume")
    assert code == 0 and "nothing to resume; a new run starts" in words
    assert (tmp_path / "x" / "summary.json").exists()


def test_a_file_is_written_where_folders_cannot_be_opened(tmp_path, monkeypatch):
    """Windows: a folder cannot be opened, and only a file that may be written can be synced."""
    opened, writable = os.open, set()

    def open_there(path, flags, *rest):
        if os.path.isdir(path):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        descriptor = opened(path, flags, *rest)
        (writable.add if flags & (os.O_RDWR | os.O_WRONLY) else writable.discard)(descriptor)
        return descriptor

    def sync_there(descriptor):
        if descriptor not in writable:
            raise OSError(errno.EBADF, "Bad file descriptor")

    monkeypatch.setattr(os, "open", open_there)
    monkeypatch.setattr(os, "fsync", sync_there)
    with pytest.raises(OSError, match="Bad file descriptor"):
        write_text(tmp_path / "a.txt", "a")
    monkeypatch.setattr(files, "_WINDOWS", True)
    write_text(tmp_path / "a.txt", "a")
    assert (tmp_path / "a.txt").read_text() == "a"


@pytest.mark.parametrize(("umask", "usual"), [(0o022, 0o644), (0o077, 0o600), (0o027, 0o640)])
def test_a_file_has_the_permissions_that_the_umask_leaves(tmp_path, umask, usual):
    """Also where a library puts a file of its own mode in the place of the temporary one."""

    def replaced(partial):
        partial.unlink()
        os.close(os.open(partial, os.O_CREAT | os.O_WRONLY, 0o600))

    before = os.umask(umask)
    try:
        write_text(tmp_path / "a", "a")
        write_whole(tmp_path / "b", replaced)
        write_text(tmp_path / "secret", "c", mode=0o600)
    finally:
        os.umask(before)
    modes = {each.name: stat.S_IMODE(each.stat().st_mode) for each in tmp_path.iterdir()}
    assert modes == {"a": usual, "b": usual, "secret": 0o600}
