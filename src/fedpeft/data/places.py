"""Where rows stand in their files, and errors that say so in one sentence."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedpeft.core.errors import DataError

_LONGEST = 200
"""Largest number of characters of a library's own words that are repeated."""
_PACKED = {
    b"\x1f\x8b": "packed with gzip",
    b"PK\x03\x04": "a zip archive (spreadsheets are, too)",
    b"BZh": "packed with bzip2",
    b"\xfd7zXZ": "packed with xz",
    b"\x28\xb5\x2f\xfd": "packed with zstandard",
    b"\xd0\xcf\x11\xe0": "an old spreadsheet",
}


@dataclass(frozen=True)
class Numbered:
    """Where the rows of a file stand, in words, for messages.

    Attributes:
      path: of the file, or what else holds the rows.
      numbers: the file's own number of each row, from 1; a range where all are used.
      unit: `row` or `line`.
      header: whether a line with the names of the columns stands before row 1.
      lines: the line on which each row begins, as a text editor counts; () where it is not known.
    """

    path: str
    numbers: Sequence[int]
    unit: str = "row"
    header: bool = False
    lines: Sequence[int] = ()

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int, /) -> str:
        after = " after the header" if self.header else ""
        line = f" (line {self.lines[index]})" if self.lines else ""
        return f"{self.unit} {self.numbers[index]}{after}{line} of {self.path}"

    def __iter__(self) -> Iterator[str]:
        return (self[row] for row in range(len(self)))


@contextlib.contextmanager
def reading(path: object, kind: str) -> Iterator[None]:
    """Turn whatever a broken file makes a library raise into one error that names the file.

    Args:
      path: of the file, or words for where it stands.
      kind: what the file should be, with its article: `a parquet file`.

    Raises:
      DataError: for every exception, but for one that is a `DataError` already.
    """
    try:
        yield
    except DataError:
        raise
    except UnicodeDecodeError as error:
        raise DataError(
            f"data.source: {path} is not UTF-8: {error.reason} (byte {error.object[error.start]:#x}"
            f" at {error.start}); save it as UTF-8"
        ) from error
    except Exception as error:  # libraries raise what they like for bytes that they do not expect
        said = (str(error).strip() or type(error).__name__).splitlines()[0][:_LONGEST]
        raise DataError(f"data.source: {path} is not {kind}: {said}") from error


def check_text(path: Path) -> None:
    """Refuse a file that is no UTF-8 text, with the line and what it is instead.

    Raises:
      DataError: if it is packed, in another encoding, or cannot be opened.
    """
    with reading(path, "a text file"), path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if number == 1:
                _refuse_kind(path, line)
            if b"\0" in line:
                raise DataError(
                    f"data.source: {path}, line {number} holds a NUL byte: it is UTF-16, or no "
                    "text; save it as UTF-8"
                )
            _decode(path, number, line)


def _refuse_kind(path: Path, line: bytes) -> None:
    packed = next((words for magic, words in _PACKED.items() if line.startswith(magic)), None)
    if packed is not None:
        raise DataError(f"data.source: {path} is {packed}, not text: unpack it, or save it as text")
    if line.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DataError(f"data.source: {path} is not UTF-8 but UTF-16; save it as UTF-8")


def _decode(path: Path, number: int, line: bytes) -> None:
    try:
        line.decode()
    except UnicodeDecodeError as error:
        byte = line[error.start]
        raise DataError(
            f"data.source: {path} is not UTF-8: line {number} has the byte {byte:#x}, which is "
            f"{bytes([byte]).decode('latin-1')!r} in Latin-1; save it as UTF-8"
        ) from error


def in_folder(folder: str | Path, name: str) -> Path:
    """Return the path of a file that a table in a folder names, also if written on Windows."""
    found = Path(folder, name)
    return Path(folder, name.replace("\\", "/")) if "\\" in name and not found.exists() else found
