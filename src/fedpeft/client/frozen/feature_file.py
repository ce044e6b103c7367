"""Stored features: one flat table in shared memory or in a file, a checksum for each record.

    header  4 KiB              the key of the table; a file with another key is not used
    marks   int64 [R]          0 if absent; else CRC-32 of label and values, plus 2**32
    labels  int64 [R]
    values  float32 [S, D]     record r has the rows from starts[r] to starts[r + 1]

The file is one `numpy.memmap` of bytes, and the columns are views of it. Any number of processes
may read and write one table without a lock: all compute the same record, and one that is partly
written or damaged does not match its checksum, so that it counts as absent and is written again.
Legend: R records, S rows of values, D width.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
import zlib
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from fedpeft.core.errors import EngineError

Ints = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]
_HEADER = 4096
_MARK = 1 << 32
_STALE = 3600.0
"""Seconds after which an unfinished file is considered abandoned."""


Count = TypeVar("Count", int, Ints)


def bytes_of(num_records: Count, num_rows: Count, width: int) -> Count:
    """Return the size in bytes of one table, or of several (with arrays of counts)."""
    return _HEADER + 16 * num_records + 4 * num_rows * width


class FeatureFile:
    """A table of features, open in this process and in those that are forked from it.

    Args:
      whole: the mapped file, uint8, of the right size.
      starts: first row of each record, then the number of all rows; int64 [R + 1].
      width: values per row.
    """

    def __init__(self, whole: Bytes, starts: Ints, width: int) -> None:
        self._starts, count = starts, len(starts) - 1
        body = np.asarray(whole)[_HEADER:]
        self._marks, self._labels = body[: 16 * count].view(np.int64).reshape(2, count)
        self._values = body[16 * count :].view(np.float32).reshape(int(starts[-1]), width)
        self._checked = np.zeros(count, np.bool_)

    def missing(self, records: Ints) -> Ints:
        """Return the records that are absent or damaged; valid ones are checked only once."""
        unknown = records[~self._checked[records]]
        for record in unknown.tolist():
            mark = int(self._marks[record])
            self._checked[record] = mark != 0 and mark == self._sum(record)
        return records[~self._checked[records]]

    def put(self, record: int, label: int, values: npt.NDArray[np.float32]) -> None:
        """Write a record [rows, D]; the checksum is written last."""
        self._values[self._starts[record] : self._starts[record + 1]] = values
        self._labels[record] = label
        self._marks[record] = self._sum(record)
        self._checked[record] = True

    def labels(self, records: Ints) -> Ints:
        """Return a copy of the labels of some records."""
        return np.asarray(self._labels[records])

    def rows(self, rows: Ints) -> npt.NDArray[np.float32]:
        """Return a copy of some rows of values: [..., D] for rows [...]."""
        return self._values.take(rows, axis=0)

    def _sum(self, record: int) -> int:
        values = self._values[self._starts[record] : self._starts[record + 1]]
        return _MARK | zlib.crc32(values.data, zlib.crc32(self._labels[record : record + 1].data))


def memory_file(size: int) -> Bytes:
    """Map a file in memory, or a temporary file if the system has no memory files."""
    if not hasattr(os, "memfd_create"):
        return private_file(Path(tempfile.gettempdir()), size)
    with open(os.memfd_create("fedpeft-prefix"), "r+b") as file:
        file.truncate(size)
        return np.memmap(file, np.uint8, "r+")


def private_file(folder: Path, size: int) -> Bytes:
    """Map a file without a name, which is deleted when the last process ends.

    Raises:
      EngineError: if the disk is full.
    """
    whole, path = _new(folder, size)
    path.unlink()
    return whole


def file_in_folder(folder: Path, key: str, size: int, limit: int) -> Bytes:
    """Map the table of a key, from an earlier run or new.

    If the folder would exceed `limit` bytes, the least recently used files are deleted; a run that
    still reads one keeps it until its end.

    Args:
      folder: created if needed.
      key: everything that the features depend on, as ASCII text of at most 4,000 characters; its
        first 32 name the file.
      size: size of the file, in bytes.
      limit: largest total size of all tables in the folder, in bytes.

    Raises:
      EngineError: if the disk is full.
    """
    header = key.encode("ascii").ljust(_HEADER, b"\0")
    path = folder / f"{key[:32]}.prefix"
    with contextlib.suppress(OSError, ValueError):  # missing, or empty
        found = np.memmap(path, np.uint8, "r+")
        if len(found) == size and found[:_HEADER].tobytes() == header:
            with contextlib.suppress(OSError):
                os.utime(path)
            return found
    _make_room(folder, limit - size)
    whole, partial = _new(folder, size)
    whole[:_HEADER] = np.frombuffer(header, np.uint8)
    partial.replace(path)
    return whole


def _make_room(folder: Path, limit: int) -> None:
    for path in folder.glob("*.partial"):  # left by runs that were killed while writing a file
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


def _new(folder: Path, size: int) -> tuple[Bytes, Path]:
    """Create a file with all its bytes allocated, so that writing into it cannot fail later."""
    path = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(suffix=".partial", dir=folder, delete=False) as file:
            path = Path(file.name)
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
            else:
                file.truncate(size)
            return np.memmap(path, np.uint8, "r+"), path
    except OSError as error:
        if path is not None:
            path.unlink()
        raise EngineError(
            f"client.prefix_cache: {size} bytes cannot be stored in {folder}: {error}. Free some "
            "space, set FEDPEFT_CACHE to another folder, or client.prefix_cache = 'off'"
        ) from error
