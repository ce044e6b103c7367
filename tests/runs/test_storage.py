"""A disk that is full or read-only: one sentence with the path, an exit code, the state kept."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest
from safetensors import SafetensorError

import fedpeft.export.export as export
import fedpeft.runs.files as files
import fedpeft.runs.loop as loop
from fedpeft.cli.app import main
from fedpeft.cli.ending import ending
from fedpeft.core.errors import StorageError
from fedpeft.experiment.read import DIGITS
from fedpeft.runs.files import write_text, write_whole

TINY = (
    "model.name=preset:tiny-vit", "data.partition.clients=4", "federation.rounds=2",
    "federation.clients_per_round=2", "client.epochs=1", "engine.workers=1", "data.source=digits",
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
        code, words = command("run", DIGITS, *sets(), "--out", out)
    (line,) = [line for line in words.splitlines() if line.startswith("error")]
    assert code == StorageError.exit_code == 4
    assert f"{out}/checkpoints: cannot be written after round 2: No space left" in line
    assert "Traceback" not in words
    code, _ = command("run", DIGITS, *sets(), "--out", out, "--resume")
    assert code == 0 and (out / "summary.json").exists()


@pytest.fixture
def finished(command, tmp_path):
    code, _ = command("run", DIGITS, *sets(), "--out", tmp_path / "finished")
    assert code == 0
    return tmp_path / "finished"


def full_disk(monkeypatch, name):
    """Make writes fail as on a full disk: opening a file works, writing names no path."""

    def fail(self, *args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, name, fail)


COMMANDS = {
    "run": lambda run, to: ["run", DIGITS, *sets(), "--out", to / "new"],
    "report": lambda run, to: ["report", run, "--out", to / "page.html"],
    "figures": lambda run, to: ["figures", DIGITS, *sets(), "--out", to / "figures"],
    "export": lambda run, to: ["export", run, "--to", to / "export"],
    "gap": lambda run, to: [
        *("gap", "--data", "digits", "--data", "digits-inverted", "--sample", "20"),
        *("--out", to / "gap"),
    ],
}


def check_sentence(code, words, place):
    (line,) = [line for line in words.splitlines() if line.startswith("error")]
    assert code == 2 and "Traceback" not in words
    assert str(place) in line and "; " in line


@pytest.mark.parametrize("name", ["run", "report", "figures", "export", "gap"])
def test_a_full_disk_is_one_sentence_with_the_path(name, command, finished, monkeypatch, tmp_path):
    full_disk(monkeypatch, "write_text")
    full_disk(monkeypatch, "write_bytes")
    code, words = command(*COMMANDS[name](finished, tmp_path))
    check_sentence(code, words, tmp_path)
    assert "No space left on device; make room" in words


def test_tensors_that_do_not_fit_are_the_same_sentence(command, finished, monkeypatch, tmp_path):
    def fail(*args, **kwargs):
        raise SafetensorError("Error while serializing: I/O error: No space left on device")

    monkeypatch.setattr(export, "_save_model", fail)
    code, words = command(*COMMANDS["export"](finished, tmp_path))
    check_sentence(code, words, tmp_path / "export")
    assert [path.name for path in tmp_path.iterdir()] == ["finished"]  # nothing half written


@pytest.mark.parametrize("name", ["run", "report", "figures", "export", "gap"])
def test_a_folder_that_cannot_be_made_is_one_sentence(name, command, finished, tmp_path):
    (tmp_path / "file").write_text("x")
    code, words = command(*COMMANDS[name](finished, tmp_path / "file"))
    (line,) = [line for line in words.splitlines() if line.startswith("error")]
    assert code == 2 and str(tmp_path / "file") in line and "Traceback" not in words


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS])
def test_a_read_only_folder_is_one_sentence(number, command, finished, monkeypatch, tmp_path):
    right = Path.open

    def refuse(self, mode="r", *args, **kwargs):
        if "w" in mode:
            raise OSError(number, os.strerror(number), str(self))
        return right(self, mode, *args, **kwargs)

    monkeypatch.setattr(Path, "open", refuse)
    code, words = command("report", finished)
    check_sentence(code, words, finished)


def test_an_error_that_is_not_of_a_disk_is_not_hidden(monkeypatch, capsys):
    """The negative control: a fault of ours without a path still shows where it is."""

    @ending()
    def broken():
        raise OSError("not of a disk")

    with pytest.raises(OSError, match="not of a disk"):
        broken()


@pytest.mark.parametrize(("name", "words"), [
    ("audit.json", "holds an audit"), ("gap.json", "holds the measures of `fedpeft gap`"),
    ("fedpeft.json", "holds an export"), ("config.json", "holds a model"),
    ("site.toml", "holds a site's file"),
])  # fmt: skip
def test_a_report_says_what_another_folder_is(name, words, command, tmp_path):
    (tmp_path / name).write_text("{}")
    code, said = command("report", tmp_path)
    assert code == 2 and words in said and "Traceback" not in said


def test_an_out_that_cannot_be_made_is_one_sentence(command, tmp_path):
    (tmp_path / "file").write_text("x")
    code, words = command("run", DIGITS, *sets(), "--out", tmp_path / "file" / "run")
    assert code == 2 and words.splitlines()[-1].startswith("error: ")
    assert str(tmp_path / "file") in words and "Traceback" not in words


def test_nothing_to_resume_is_said_and_starts_no_quickstart(command, tmp_path):
    code, words = command("run", "--resume", "--out", tmp_path / "typo")
    assert code == 2 and "there is no run to go on with" in words
    assert not (tmp_path / "typo").exists()


def test_settings_alone_say_what_to_start_where_nothing_is_to_resume(command, tmp_path):
    code, words = command("run", *sets(), "--resume", "--out", tmp_path / "new")
    assert code == 0 and "nothing to resume; a new run starts" in words
    code, words = command("run", *sets(), "--resume")
    assert code == 2 and "there is no run to go on with" in words


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
