"""Stored features: one flat table in shared memory or in a file, a checksum for each record.

    header  JSON, 4 KiB        what the file is; another text means another file
    marks   int64 [R]          0: not there yet; else CRC-32 of label and values, plus 2**32
    labels  int64 [R]
    values  float32 [S, D]     record r has the rows from starts[r] to starts[r + 1]

Any number of processes may read and write one table without a lock: a record is the same whoever
computes it, and one that is torn, truncated or damaged does not match its checksum, so that it
counts as absent and is written again. Legend: R records, S rows of values, D width.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import tempfile
import time
import zlib
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from fedpeft.core.errors import EngineError

__all__ = ["FeatureFile", "bytes_of", "file_in_folder", "memory_file", "private_file"]

Ints = npt.NDArray[np.int64]
_HEADER = 4096
_MARK = 1 << 32
_STALE = 3600.0
"""Seconds after which nobody is making a file any more."""


Count = TypeVar("Count", int, Ints)


def bytes_of(num_records: Count, num_rows: Count, width: int) -> Count:
    """Count the bytes of a table, or of some: records and rows as in the legend."""
    return _HEADER + 16 * num_records + 4 * num_rows * width


class FeatureFile:
    """A table of features, open in this process and in those that are forked from it.

    Args:
      file: descriptor of a file of the right size.
      starts: first row of each record, and the number of rows at the end; int64 [R + 1].
      width: numbers a row.
    """

    def __init__(self, file: int, starts: Ints, width: int) -> None:
        self._file, self._starts, self._width = file, starts, width
        count, rows = len(starts) - 1, int(starts[-1])
        size = bytes_of(count, rows, width)
        whole = np.frombuffer(mmap.mmap(file, size), np.uint8)
        self._marks = whole[_HEADER : _HEADER + 8 * count].view(np.int64)
        self._labels = whole[_HEADER + 8 * count : _HEADER + 16 * count].view(np.int64)
        values = whole[_HEADER + 16 * count : size].view(np.float32)
        self._values = values.reshape(rows, width)
        self._checked = np.zeros(count, np.bool_)

    def missing(self, records: Ints) -> Ints:
        """Return those records that are not there, or damaged; each found one is checked once."""
        unknown = records[~self._checked[records]]
        for record in unknown.tolist():
            mark = int(self._marks[record])
            self._checked[record] = mark != 0 and mark == self._sum(record)
        return records[~self._checked[records]]

    def put(self, record: int, label: int, values: npt.NDArray[np.float32]) -> None:
        """Write a record [rows, D]: the mark comes last."""
        self._values[self._starts[record] : self._starts[record + 1]] = values
        self._labels[record] = label
        self._marks[record] = self._sum(record)
        self._checked[record] = True

    def labels(self, records: Ints) -> Ints:
        """Return a copy of labels."""
        return np.asarray(self._labels[records])

    def rows(self, rows: Ints) -> npt.NDArray[np.float32]:
        """Return a copy of rows of values: [..., D] for rows [...]."""
        return self._values.take(rows, axis=0)

    def _sum(self, record: int) -> int:
        values = self._values[self._starts[record] : self._starts[record + 1]]
        return _MARK | zlib.crc32(values.data, zlib.crc32(self._labels[record : record + 1].data))

    def __del__(self) -> None:
        with contextlib.suppress(OSError, AttributeError):
            os.close(self._file)


def memory_file(size: int) -> int:
    """Return the descriptor of a file in memory, or of a temporary one where there is no such."""
    if not hasattr(os, "memfd_create"):
        return private_file(Path(tempfile.gettempdir()), size)
    file = os.memfd_create("fedpeft-prefix")
    os.ftruncate(file, size)
    return file


def private_file(folder: Path, size: int) -> int:
    """Return the descriptor of a file without a name: it goes when the last process ends.

    Raises:
      EngineError: if there is no room.
    """
    file, name = _new(folder, size)
    os.unlink(name)
    return file


def file_in_folder(folder: Path, key: str, size: int, limit: int) -> int:
    """Open the table of a key, from an earlier run or new.

    Files that were not used for longest go where the folder would hold more than `limit` bytes; a
    run that still reads one keeps it to its end.

    Args:
      folder: made if need be.
      key: everything that the features depend on, as ASCII text of at most 4,000 characters; its
        first 32 name the file.
      size: of the file, in bytes.
      limit: bytes of all tables of the folder together.

    Raises:
      EngineError: if there is no room.
    """
    header = key.encode("ascii").ljust(_HEADER, b"\0")
    path = folder / f"{key[:32]}.prefix"
    found = _reopen(path, header, size)
    if found is not None:
        return found
    _make_room(folder, limit - size)
    file, name = _new(folder, size)
    os.pwrite(file, header, 0)
    os.replace(name, path)
    return file


def _reopen(path: Path, header: bytes, size: int) -> int | None:
    """Open a table that is whole and of the right kind; what is not is left for the replacement."""
    try:
        file = os.open(path, os.O_RDWR)
    except OSError:
        return None
    if os.fstat(file).st_size == size and os.pread(file, _HEADER, 0) == header:
        with contextlib.suppress(OSError):
            os.utime(path)
        return file
    os.close(file)
    return None


def _make_room(folder: Path, limit: int) -> None:
    for path in folder.glob("*.partial"):  # of runs that were killed while they made a file
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > _STALE:
                path.unlink()
    found = []
    for path in folder.glob("*.prefix"):
        with contextlib.suppress(OSError):
            stat = path.stat()
            found.append((stat.st_mtime, stat.st_size, path))
    held = sum(size for _, size, _ in found)
    for _, size, path in sorted(found):
        if held <= limit:
            return
        path.unlink(missing_ok=True)
        held -= size


def _new(folder: Path, size: int) -> tuple[int, str]:
    """Make a file with all its bytes reserved, so that writing into it cannot fail later."""
    file = -1
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file, name = tempfile.mkstemp(suffix=".partial", dir=folder)
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file, 0, size)
        else:
            os.ftruncate(file, size)
    except OSError as error:
        if file >= 0:
            os.close(file)
            os.unlink(name)
        raise EngineError(
            f"client.prefix_cache: {size} bytes cannot be kept in {folder}: {error}. Free some "
            "room, set FEDPEFT_CACHE to another folder, or client.prefix_cache = 'off'"
        ) from error
    return file, name
