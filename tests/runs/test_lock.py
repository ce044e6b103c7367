from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from fedpeft.core.errors import RunFolderError
from fedpeft.runs.lock import LOCK, locked


def write(folder: Path, **changes: object) -> None:
    with locked(folder):
        owner = json.loads((folder / LOCK).read_text())
    (folder / LOCK).write_text(json.dumps({**owner, **changes}))


def test_lock_is_gone_after_the_block(tmp_path: Path) -> None:
    with locked(tmp_path):
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
    assert not (tmp_path / LOCK).exists()


def test_a_live_owner_keeps_others_out(tmp_path: Path) -> None:
    with locked(tmp_path), pytest.raises(RunFolderError, match="is writing to this folder"):
        with locked(tmp_path, patience=0):
            pass


def test_an_owner_that_ends_soon_is_waited_for(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(0.3)"])
    started = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[19]
    write(tmp_path, pid=process.pid, started=started)
    with locked(tmp_path):
        process.wait()


def test_a_dead_owners_lock_is_taken_over(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    write(tmp_path, pid=process.pid)
    with locked(tmp_path):
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()


def test_a_number_that_was_given_to_another_process_is_taken_over(tmp_path: Path) -> None:
    write(tmp_path, started="1")
    with locked(tmp_path):
        pass


def test_an_owner_on_another_host_is_taken_to_live(tmp_path: Path) -> None:
    write(tmp_path, host=socket.gethostname() + "-other")
    with pytest.raises(RunFolderError, match=r"delete .*lock"), locked(tmp_path, patience=0):
        pass


@pytest.mark.parametrize("content", ["", "{", "[]", '{"pid": 1}'])
def test_a_torn_lock_is_taken_over(tmp_path: Path, content: str) -> None:
    (tmp_path / LOCK).write_text(content)
    with locked(tmp_path):
        pass
