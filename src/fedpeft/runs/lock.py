"""A lock that keeps two runs out of one folder, and that dies with its owner.

    lock = {"pid": 4711, "started": "88213", "host": "box"}

A process is known by its number, its start time and its host: numbers are used again. A lock whose
owner is gone is taken over. Checking and taking happen under an advisory file lock, so that two
processes that meet a dead owner's lock cannot both take it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from fedpeft.core.errors import RunFolderError

__all__ = ["LOCK", "holder", "locked"]

LOCK = "lock"
"""Name of the lock file in a folder."""


@contextlib.contextmanager
def locked(folder: Path, *, patience: float = 3.0) -> Iterator[None]:
    """Hold the lock of an existing folder inside the block.

    Args:
      folder: to lock.
      patience: seconds to wait for a live owner to end; those of a killed sweep take a moment.

    Raises:
      RunFolderError: if a live process holds it.
    """
    file = folder / LOCK
    deadline = time.monotonic() + patience
    while (owner := _take(file)) is not None:
        if time.monotonic() > deadline:
            raise RunFolderError(
                f"{folder}: process {owner['pid']} on {owner['host']} is writing to this folder; "
                f"one run a folder is allowed. Wait for it, choose another --out, or, if that "
                f"process is certainly gone, delete {file}"
            )
        time.sleep(0.1)
    try:
        yield
    finally:
        _release(file)


def holder(folder: Path) -> dict[str, object] | None:
    """Return the live process that holds the lock of a folder; None if there is none."""
    try:
        owner = json.loads((folder / LOCK).read_text("utf-8"))
    except (OSError, ValueError):
        return None
    known = isinstance(owner, dict) and {"pid", "started", "host"} <= set(owner)
    return owner if known and _lives(owner) else None


def _take(file: Path) -> dict[str, object] | None:
    """Take a lock, or return the live owner that keeps it."""
    with _guarded(file) as descriptor:
        owner = _read(descriptor)
        if owner is not None and _lives(owner):
            return owner
        _write(descriptor, _identity(os.getpid()))
        return None


def _release(file: Path) -> None:
    if not file.exists():
        return
    with _guarded(file) as descriptor:
        if _read(descriptor) == _identity(os.getpid()):
            file.unlink()


@contextlib.contextmanager
def _guarded(file: Path) -> Iterator[int]:
    """Open a file and be alone with it; again if it was deleted between the two."""
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if not _same_file(descriptor, file):
                continue
            yield descriptor
            return
        finally:
            os.close(descriptor)


def _same_file(descriptor: int, file: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), file.stat())
    except FileNotFoundError:
        return False


def _read(descriptor: int) -> dict[str, object] | None:
    """Return the owner, or None where the lock is new or was cut short by a crash."""
    text = os.pread(descriptor, 4096, 0)
    try:
        owner = json.loads(text)
    except ValueError:
        return None
    known = isinstance(owner, dict) and {"pid", "started", "host"} <= set(owner)
    return owner if known else None


def _write(descriptor: int, owner: dict[str, object]) -> None:
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps(owner).encode(), 0)
    os.fsync(descriptor)


def _identity(pid: int) -> dict[str, object]:
    return {"pid": pid, "started": _started(pid), "host": socket.gethostname()}


def _lives(owner: dict[str, object]) -> bool:
    """Tell whether the owner is still there; one on another host is taken to be."""
    if owner["host"] != socket.gethostname():
        return True
    started = _started(int(str(owner["pid"])))
    return started is not None and started == owner["started"]


def _started(pid: int) -> str | None:
    """Return when a process started, in words that only it has; None if it is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text("utf-8", errors="replace")
    except FileNotFoundError:
        return None if Path("/proc/self").exists() else _started_by_ps(pid)
    fields = text.rpartition(")")[2].split()  # the name before it may hold anything
    state, ticks_since_boot = fields[0], fields[19]
    return None if state in "ZX" else ticks_since_boot


def _started_by_ps(pid: int) -> str | None:
    found = subprocess.run(
        ["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False
    )
    return found.stdout.strip() or None
