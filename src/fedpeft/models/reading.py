"""Reading the files of a model folder: what a library raises for them becomes one `ModelError`.

    with reading(folder, "the weights cannot be read", files): library ... ──any exception──┐
        files ── the first that is missing, no file, or not whole ──> ModelError that names it
           └──── all are whole ──> ModelError that names the folder, with the library's words

Libraries raise whatever they meet in a broken file: KeyError, AttributeError, OverflowError, a
panic of their Rust code. So every kind is caught, but only around a library's call on files that
came from outside: a fault in this package's own code still ends in a traceback.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from fedpeft.core.errors import FedpeftError, ModelError
from fedpeft.core.text import byte_words, plain

AGAIN = "fetch the model again, or take another copy"
"""What to do about a broken file."""
_MOST_JSON = 50_000_000
"""Bytes of the largest JSON file that is read: no tokenizer or index is near it."""
_POINTER = b"version https://git-lfs"


@contextlib.contextmanager
def reading(
    where: object, problem: str, *, advice: str = AGAIN, files: Iterable[Path] = ()
) -> Iterator[None]:
    """Turn whatever a library raises for foreign files into one error that names them.

    Put nothing but the library's call inside. `KeyboardInterrupt` and other exceptions that are
    not for the caller pass; a panic of a library's Rust code does not.

    Args:
      where: the folder, file or name that is read.
      problem: what cannot be done with it, as a sentence without its end.
      advice: what to do.
      files: files that the library reads; if one of them is broken, the error is about that one.

    Raises:
      ModelError: for every exception, but for one of this package, which passes.
    """
    try:
        yield
    except FedpeftError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        if _is_memory(error):
            raise ModelError(
                f"{where}: {problem}: this machine has not enough memory; use one with more, or a "
                "smaller model"
            ) from error
        files = [file for file in files if os.path.lexists(file)]
        for file in files:
            check_file(file)
        read = f" from {', '.join(file.name for file in files)}" if files else ""
        raise ModelError(f"{where}: {problem}{read} ({_said(error)}); {advice}") from error


def check_file(file: Path) -> None:
    """Check that a file is a file, can be opened, and is JSON if it is named so.

    Raises:
      ModelError: naming the file.
    """
    if file.suffix == ".json":
        read_object(file)
    else:
        read_start(file, 1)


def read_object(file: Path) -> dict[str, object]:
    """Read a JSON object.

    Raises:
      ModelError: if it cannot be read, is larger than 50 MB, not UTF-8, or holds something else.
    """
    content = read_start(file, _MOST_JSON + 1)
    if len(content) > _MOST_JSON:
        raise ModelError(
            f"{file}: found more than {byte_words(_MOST_JSON)}; a JSON object of settings is "
            f"expected; {AGAIN}"
        )
    try:
        found = json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        empty = "the file is empty" if not content.strip() else _said(error)
        raise ModelError(f"{file}: not a JSON object ({empty}); {AGAIN}") from error
    if not isinstance(found, dict):
        raise ModelError(
            f"{file}: not a JSON object (found a {type(found).__name__}, {plain(found, 40)!r}); "
            f"{AGAIN}"
        )
    return found


def read_start(file: Path, size: int) -> bytes:
    """Read the first `size` bytes of a file, or all of a shorter one.

    Raises:
      ModelError: if it is missing, no ordinary file, not permitted, or a pointer of Git LFS.
    """
    try:
        if not file.is_file():
            raise ModelError(f"{file}: {_not_a_file(file)}; a file is expected: {AGAIN}")
        with file.open("rb") as stream:
            content = stream.read(max(size, len(_POINTER)))
    except OSError as error:
        raise ModelError(
            f"{file}: cannot be read ({error.strerror or error}); give this user the right to read "
            "it, or take another copy"
        ) from error
    if content.startswith(_POINTER):
        raise ModelError(
            f"{file}: is a pointer of Git LFS, not the file itself; run `git lfs pull` in "
            f"{file.parent}"
        )
    return content[:size]


def _not_a_file(file: Path) -> str:
    """Say what stands in the place of a file."""
    if file.is_dir():
        return "is a folder"
    if file.is_symlink() and not file.exists():
        return f"is a link to {os.readlink(file)}, which leads to no file"
    return "is no ordinary file" if os.path.lexists(file) else "is missing"


def _is_memory(error: BaseException) -> bool:
    words = str(error).lower()
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError | OSError)
        and ("can't allocate memory" in words or "cannot allocate memory" in words)
    )


def _said(error: BaseException) -> str:
    """Return the words of an exception in one line; of kinds that say little, with the kind."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    if type(error).__name__ == "StrictDataclassFieldValidationError" and error.__cause__:
        return plain(error.__cause__, 200).partition(". Errors:")[0]
    words, kind = plain(error, 250), type(error).__name__
    if not words:
        return kind
    return words if isinstance(error, ValueError | OSError | ImportError) else f"{kind}: {words}"
