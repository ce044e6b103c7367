"""A lock that keeps two runs out of one folder, and ends with its owner.

    .fedpeft.lock = {"pid": 4711, "host": "box"}

The operating system holds the lock (`flock`, through the `filelock` library) and releases it when
its owner ends, however it ends; the text of the file only names the owner.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from fedpeft.core.errors import RunFolderError
from fedpeft.core.storage import about

LOCK = ".fedpeft.lock"
"""Name of the lock file in a folder."""


@contextlib.contextmanager
def locked(folder: Path, *, patience: float = 3.0) -> Iterator[None]:
    """Hold the lock of an existing folder inside the block; other threads are kept out too.

    Args:
      folder: to lock.
      patience: seconds to wait for a live owner to end; runs of a killed sweep take a moment.

    Raises:
      RunFolderError: if a live process holds it.
    """
    file = folder / LOCK
    try:
        held = FileLock(file).acquire(timeout=patience)
    except Timeout as error:
        owner = _owner(file)
        raise RunFolderError(
            f"{folder}: process {owner.get('pid', '?')} on {owner.get('host', '?')} is writing to "
            "this folder; one run a folder is allowed. Wait for it, or choose another --out"
        ) from error
    with held:
        try:
            with about(file):
                file.write_text(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}))
            yield
        finally:
            file.unlink(missing_ok=True)  # while it is held: other processes that wait check again


def holder(folder: Path) -> dict[str, object] | None:
    """Return the live process that holds the lock of a folder; None if there is none."""
    file = folder / LOCK
    if not file.exists():
        return None
    try:
        with FileLock(file).acquire(blocking=False):
            return None
    except (Timeout, PermissionError):  # another user's folder: its lock file names the owner
        return _owner(file)


def _owner(file: Path) -> dict[str, object]:
    """Return the owner that a lock file names; {} while the file is being written."""
    try:
        owner = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return owner if isinstance(owner, dict) else {}
