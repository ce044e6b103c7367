"""Errors of a disk that is full or read-only: which file or folder they are about, what to do."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError

_ADVICE = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "make room, or name a folder on another disk"),
    **dict.fromkeys((errno.EROFS,), "name a folder that can be written"),
    **dict.fromkeys((errno.EACCES, errno.EPERM), "give the right to it, or name another"),
}


@contextlib.contextmanager
def about(place: Path) -> Iterator[None]:
    """Name a file or folder in errors of the disk that name none; a write to a full disk does not.

    Raises:
      OSError: with the path; also for what the `safetensors` library raises of the disk.
    """
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            raise OSError(error.errno, error.strerror, str(place)) from error
        raise
    except SafetensorError as error:
        full = "No space left" in str(error)
        number = errno.ENOSPC if full else errno.EIO
        said = "No space left on device" if full else str(error)
        raise OSError(number, said, str(place)) from error


def disk_words(error: OSError) -> str:
    """Return one sentence about an error of the disk: where, what, and what to do."""
    advice = _ADVICE.get(error.errno or 0)
    said = f"{error.filename or 'the disk'}: {error.strerror or error}"
    return f"{said}; {advice}" if advice else said


def is_full(error: OSError) -> bool:
    """Whether a disk is full or read-only, even where the error names no path."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
