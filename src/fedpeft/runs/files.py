"""Files that are whole or not there: temporary file, fsync, rename, fsync of the folder."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

__all__ = ["TEMPORARY", "remove_temporary", "write_json", "write_text", "write_whole"]

TEMPORARY = ".partial"
"""Suffix of a file that is being written; one that is found later is the rest of a crash."""


def write_whole(file: Path, write: Callable[[Path], None], *, mode: int = 0o644) -> None:
    """Write a file so that its name holds either the old content or all of the new.

    Args:
      file: the name to fill.
      write: gets the path of an empty temporary file and fills it.
      mode: permissions of the file.
    """
    partial = file.with_name(file.name + TEMPORARY)
    partial.unlink(missing_ok=True)
    os.close(os.open(partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode))
    write(partial)
    os.chmod(partial, mode)
    _sync(partial)
    os.replace(partial, file)
    _sync(file.parent)


def write_text(file: Path, text: str) -> None:
    """Write text as `write_whole` does."""
    write_whole(file, lambda partial: _fill(partial, text))


def write_json(file: Path, value: object) -> None:
    """Write a JSON value as `write_whole` does, readable by people too."""
    write_text(file, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def remove_temporary(folder: Path) -> None:
    """Delete what a crash left behind in a folder."""
    for file in folder.glob("*" + TEMPORARY):
        file.unlink()


def _fill(file: Path, text: str) -> None:
    file.write_text(text, "utf-8")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
