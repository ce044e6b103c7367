"""Tables of separated values: .csv and .tsv, with the file's own row and line for every message.

    text,label        line 1: the header, where `data.header` is true
    "a cat,
     asleep",cat      row 1, line 2
    a dog,dog         row 2, line 4

Values are typed column by column: numbers, truth values, texts. Empty cells are missing.
"""

from __future__ import annotations

import contextlib
import csv
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fedpeft.core.errors import DataError
from fedpeft.data.places import Numbered, check_text, reading
from fedpeft.data.tables import Table

if TYPE_CHECKING:
    import pyarrow as pa


_OTHERS = ";\t|,"
_BLOCK = 2**30


@dataclass(frozen=True)
class Separated:
    """How the files of separated values of an experiment are written.

    Attributes:
      header: whether the first line names the columns; else they are `column_1`, `column_2` ...
      separator: the character between two cells; None is a comma in .csv and a tab in .tsv.
    """

    header: bool = True
    separator: str | None = None


AS_USUAL = Separated()


def read_separated(path: Path, form: Separated = AS_USUAL) -> dict[str, Table]:
    """Read one table of separated values.

    Raises:
      DataError: naming the line that is no text, or whose cells do not fit the columns.
    """
    mark = form.separator or ("\t" if path.suffix.lower() == ".tsv" else ",")
    if len(mark) != 1 or not mark.isascii() or mark in '"\r\n':
        raise DataError(
            f"data.separator: found {mark!r}; allowed is one ASCII character that is neither a "
            'quote nor the end of a line, such as ";" or "\\t"'
        )
    check_text(path)
    if form.header:
        _refuse_another_separator(path, mark)
    table = _read(path, mark, header=form.header)
    names = _names(path, table, mark) if form.header else _numbered(table.num_columns)
    lines = _lines(path, mark, header=form.header)
    places = Numbered(
        str(path),
        range(1, len(table) + 1),
        header=form.header,
        lines=lines if len(lines) == len(table) else (),
    )
    columns = {name: table.column(i).to_pylist() for i, name in enumerate(names)}
    hint = "a file whose first line names no columns needs data.header = false"
    return {
        "train": Table(
            columns, places=places, folder=str(path.parent), hint=hint if form.header else ""
        )
    }


def _refuse_another_separator(path: Path, mark: str) -> None:
    """Refuse a header of one column with a usual separator in its name."""
    names = [""]
    with contextlib.suppress(csv.Error):
        _, names = next(_rows(path, mark), (1, names))
    other = next((char for char in _OTHERS if char != mark and char in names[0]), None)
    if len(names) == 1 and other is not None:
        raise DataError(
            f"data.source: {path}: the header is one column, {names[0][:80]!r}: is the separator "
            f"{other!r}? Set data.separator"
        )


def _read(path: Path, mark: str, *, header: bool) -> pa.Table:
    import pyarrow as pa
    from pyarrow import csv as arrow

    size = min(path.stat().st_size + 1, _BLOCK)  # one block holds the longest cell
    try:
        with reading(path, f"a {path.suffix[1:].lower()} file"):
            return arrow.read_csv(
                path,
                read_options=arrow.ReadOptions(
                    block_size=size, autogenerate_column_names=not header
                ),
                parse_options=arrow.ParseOptions(delimiter=mark, newlines_in_values=True),
            )
    except DataError as error:
        if isinstance(error.__cause__, pa.ArrowInvalid):
            with contextlib.suppress(csv.Error):
                _refuse_ragged(path, mark)
        raise


def _names(path: Path, table: pa.Table, mark: str) -> list[str]:
    names = list(table.column_names)
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise DataError(
            f"data.source: {path}: the header names the column {twice[0]!r} twice: rename one"
        )
    lone = [name for name in names if _is_number(name)]
    if lone:
        raise DataError(
            f"data.source: {path}: the first line must name the columns, found is {lone[0]!r}: add "
            "a line such as text,label, or set data.header = false"
        )
    return names


def _numbered(count: int) -> list[str]:
    return [f"column_{number}" for number in range(1, count + 1)]


def _refuse_ragged(path: Path, mark: str) -> None:
    """Name the first row that has not as many cells as the first one.

    Raises:
      DataError: if there is such a row.
    """
    expected: list[str] = []
    for line, cells in _rows(path, mark):
        if expected and len(cells) != len(expected):
            names = ", ".join(cell[:30] for cell in expected[:8])
            unclosed = any("\n" in cell for cell in cells[-1:])
            hint = (
                "is a quote opened there that is never closed?"
                if unclosed
                else "put a cell that holds the separator into quotes"
            )
            raise DataError(
                f"data.source: {path} is not a {path.suffix[1:].lower()} file: line {line} has "
                f"{len(cells)} cell{'s' * (len(cells) != 1)}, needed are {len(expected)} "
                f"({names}): {hint}"
            )
        expected = expected or cells


def _lines(path: Path, mark: str, *, header: bool) -> Sequence[int]:
    """Return the line on which each row begins; () where that cannot be told.

    Raises:
      DataError: if a row repeats the header, as in files that were put together.
    """
    rows = _rows(path, mark)
    try:
        names = next(rows, (1, [""]))[1] if header else None
        lines = []
        for line, cells in rows:
            if cells == names:
                raise DataError(
                    f"data.source: {path}, line {line} repeats the header: take that line out"
                )
            lines.append(line)
    except csv.Error:  # a cell over the limit of the standard library
        return ()
    return lines


def _rows(path: Path, mark: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the first line (from 1) and the cells of each row that is not empty."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows, begin = csv.reader(file, delimiter=mark), 1
        for cells in rows:
            if cells:
                yield begin, cells
            begin = rows.line_num + 1


def _is_number(name: str) -> bool:
    try:
        return bool(float(name) * 0 == 0)
    except ValueError:
        return False
