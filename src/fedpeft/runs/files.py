"""Files that are complete or absent: temporary file, fsync, rename, fsync of the folder."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from fedpeft.core.errors import RunFolderError, StorageError
from fedpeft.core.storage import about
from fedpeft.core.strict_json import to_json

TEMPORARY = ".fedpeft.partial"
"""Suffix of a file of ours that is being written; one that is found later was left by a crash."""

_WINDOWS = sys.platform == "win32"


@contextlib.contextmanager
def storing(folder: Path, round: int) -> Iterator[None]:
    """Turn what a full or read-only disk raises in the block into one error of ours.

    Raises:
      StorageError: naming the folder, the round and what the system said.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        said = error.strerror if isinstance(error, OSError) else str(error)
        raise StorageError(
            f"{getattr(error, 'filename', None) or folder}: cannot be written after round {round}: "
            f"{said}. The last whole round is kept: make room or give the right to write, then go "
            "on by --resume"
        ) from error


def write_whole(file: Path, write: Callable[[Path], None], *, mode: int = 0o644) -> None:
    """Write a file so that it holds either the old content or all of the new.

    Args:
      file: to write.
      write: gets the path of an empty temporary file and fills it.
      mode: permissions of the file, of which the process's umask takes some away.
    """
    partial = file.with_name(file.name + TEMPORARY)
    with about(file):
        partial.unlink(missing_ok=True)
        descriptor = os.open(partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode)
        allowed = os.fstat(descriptor).st_mode & 0o777
        os.close(descriptor)
        write(partial)
        os.chmod(partial, allowed)  # libraries put a file of another mode in its place
        _sync(partial)
        os.replace(partial, file)
        _sync(file.parent)


def write_text(file: Path, text: str, *, mode: int = 0o644) -> None:
    """Write text, completely or not at all; `mode` as for `write_whole`."""
    write_whole(file, lambda partial: _fill(partial, text), mode=mode)


def write_json(file: Path, value: object) -> None:
    """Write an indented JSON value, completely or not at all."""
    write_text(file, to_json(value, indent=2) + "\n")


def read_object(file: Path) -> dict[str, Any] | None:
    """Read a JSON object of a run folder; None where there is no such file.

    Raises:
      RunFolderError: if the file holds anything else.
    """
    try:
        found = json.loads(file.read_text("utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise _broken(file, f"is not valid JSON: {error}") from error
    if not isinstance(found, dict):
        raise _broken(file, f"holds a {type(found).__name__}, expected an object")
    return found


def _broken(file: Path, problem: str) -> RunFolderError:
    return RunFolderError(
        f"{file.parent}: {file.name} {problem}. Restore the file, or run the experiment again into "
        "another folder; `fedpeft run --resume` writes a summary.json again that was deleted"
    )


def remove_temporary(folder: Path) -> None:
    """Delete the temporary files that a crash left in a folder."""
    for file in folder.glob("*" + TEMPORARY):
        file.unlink()


def _fill(file: Path, text: str) -> None:
    file.write_text(text, "utf-8")


def _sync(path: Path) -> None:
    """Have the disk hold a path; Windows opens no folders, and syncs only what may be written."""
    if _WINDOWS and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDWR if _WINDOWS else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
