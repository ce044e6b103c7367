"""A site's append-only files: one JSON object a line, on the disk before it counts.

append    the whole line, fsync; a disk that is full leaves the file as it was
rows      every line, or an error that names the file
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedpeft.core.errors import EngineError
from fedpeft.core.strict_json import to_json


def append(file: Path, row: Mapping[str, object]) -> None:
    """Add a line; file and folder are their owner's only.

    Raises:
      OSError: if it cannot be written; nothing of it is left then.
    """
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    line = to_json(row, ascii_only=True).encode() + b"\n"
    descriptor = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    before = os.fstat(descriptor).st_size
    try:
        if os.write(descriptor, line) != len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.fsync(descriptor)
    except OSError:
        os.ftruncate(descriptor, before)
        raise
    finally:
        os.close(descriptor)


def rows(file: Path, keys: frozenset[str], what: str) -> list[dict[str, Any]]:
    """Read all lines; [] where there is no file.

    Args:
      file: to read.
      keys: what each line has at least.
      what: the name of the file in an error.

    Raises:
      EngineError: if it is corrupt.
    """
    try:
        found = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
        if not all(isinstance(row, dict) and keys <= row.keys() for row in found):
            raise ValueError("a line lacks one of " + ", ".join(sorted(keys)))
    except FileNotFoundError:
        return []
    except ValueError as error:
        raise EngineError(
            f"{file}: the {what} is corrupt: {error}. No turn is taken until it is repaired: "
            "remove an incomplete last line, and nothing else"
        ) from error
    return found
