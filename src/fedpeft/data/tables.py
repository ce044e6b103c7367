"""Tables: named columns of equal length, the form of a data set before anything is decoded.

image   label   client
[...]   "cat"   "site-3"      row 0
[...]   "dog"   "site-1"      row 1
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import numpy.typing as npt

from fedpeft.core.errors import DataError
from fedpeft.data.request import Columns, DataRequest
from fedpeft.models.tasks import task_named

_LONGEST = 40
"""Largest number of characters of a column's name that are shown."""
_FILES = ("filename", "file", "path", "filepath", "file_path", "image_path")

USUAL_NAMES: Mapping[str, tuple[str, ...]] = {
    "image": ("image", "img", "pixel_values", "picture", "x", "file_name", *_FILES),
    "video": ("video", "videos", "clip", "clips", "pixel_values", "frames", "x"),
    "text": ("text", "sentence", "query", "question", "content", "document", "utterance"),
    "label": ("label", "labels", "fine_label", "y", "intent", "target", "class", "category"),
    "client": ("client", "speaker", "user", "author", "writer", "client_id", "user_id"),
    "messages": ("messages", "conversations", "conversation"),
    "prompt": ("prompt", "instruction", "question", "query"),
    "input": ("input", "context"),
    "completion": ("completion", "response", "answer", "output"),
}


class Column(Protocol):
    """A sequence of values, which may be decoded on demand."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> object: ...

    def __iter__(self) -> Iterator[object]: ...


@dataclass(frozen=True)
class Table:
    """The columns of one split.

    Attributes:
      columns: name -> values; all of equal length.
      names: column -> the names that its whole numbers stand for, where the source has them.
      places: where each row stands in its source, in words; () where only its number is known.
      folder: from which relative names of files in the columns count; "" for the current folder.
      hint: what else may be wrong where a column is not found; "" for nothing.
    """

    columns: Mapping[str, Column]
    names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    places: Column = ()
    folder: str = ""
    hint: str = ""

    def __len__(self) -> int:
        return min((len(column) for column in self.columns.values()), default=0)

    def place(self, row: int) -> str:
        """Return where a row (from 0) stands, for a message: `line 25 of notes.jsonl`."""
        return str(self.places[row]) if row < len(self.places) else f"row {row}"


@dataclass(frozen=True)
class Splits:
    """The splits of a data set.

    Attributes:
      tables: split name -> table; at least one.
      full_scale: pixel value of white.
      digest: SHA-256 (hex) of the contents, where they depend on the machine; else "".
    """

    tables: Mapping[str, Table]
    full_scale: int = 255
    digest: str = ""


@dataclass(frozen=True)
class Rows:
    """Some rows of a column, in a given order."""

    column: Column
    indices: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int, /) -> object:
        return self.column[int(self.indices[index])]

    def __iter__(self) -> Iterator[object]:
        return (self[row] for row in range(len(self)))


def select(table: Table, indices: npt.NDArray[np.int64]) -> Table:
    """Return some rows of a table; arrays and lists are copied, other columns read on demand."""
    columns = {name: _rows(column, indices) for name, column in table.columns.items()}
    places = _rows(table.places, indices) if len(table.places) else ()
    return replace(table, columns=columns, places=places)


def values_of(column: Column) -> list[object]:
    """Return all values of a column as plain Python objects."""
    if isinstance(column, np.ndarray):
        return list(column.tolist())
    if isinstance(column, Rows):
        values = values_of(column.column)
        return [values[index] for index in column.indices]
    return list(iter(column))


def find_column(
    table: Table,
    kind: str,
    columns: Columns,
    *,
    required: bool,
    names: Mapping[str, tuple[str, ...]] | None = None,
) -> str | None:
    """Return the column of a kind: the one that the experiment names, else the first usual name.

    Args:
      table: the table to search.
      kind: a field of `Columns`.
      columns: the names that the experiment gives.
      required: whether it is an error that there is no such column.
      names: kind -> names that are tried before the usual ones.

    Returns:
      the name of the column; None if there is none and none is required.

    Raises:
      DataError: if a named or required column is not there; lists the columns found.
    """
    found = ", ".join(name[:_LONGEST] for name in table.columns) or "none"
    hint = f"; {table.hint}" if table.hint else ""
    named = getattr(columns, kind)
    if named is not None:
        if named not in table.columns:
            raise DataError(f"data.{kind}: there is no column {named!r}; found are {found}{hint}")
        return str(named)
    usual = (*(names or {}).get(kind, ()), *USUAL_NAMES[kind])
    plain = {name.strip().casefold(): name for name in reversed(list(table.columns))}
    for name in usual:
        if name in table.columns or name in plain:
            return name if name in table.columns else plain[name]
    if required:
        raise DataError(
            f"data.{kind}: none of the columns {found} has a usual name "
            f"({', '.join(usual)}): name it in data.{kind}{hint}"
        )
    return None


def column_of(table: Table, kind: str, request: DataRequest, *, required: bool) -> str | None:
    """Return the column of a kind like `find_column`, for a request and the names of its task."""
    names = task_named(request.task).columns
    return find_column(table, kind, request.columns, required=required, names=names)


def required_column(tables: tuple[Table, Table], kind: str, request: DataRequest) -> str:
    """Return the column of a kind, after a check that both tables have it.

    Raises:
      DataError: if one of them lacks it; lists the columns found.
    """
    train, test = tables
    column = column_of(train, kind, request, required=True)
    assert column is not None, "required"
    if column not in test.columns:
        raise DataError(
            f"data.{kind}: the test split has no column {column!r}; found are "
            f"{', '.join(test.columns) or 'none'}"
        )
    return column


def draw_holdout(
    groups: Sequence[object], *, fraction: float, column: str | None = None
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Split rows into (kept, held out), stratified, from a fixed seed of its own.

    Args:
      groups: stratum of each row.
      fraction: share of each stratum to hold out, 0 to 1; numbers of rows are rounded.
      column: that the strata are the values of, for messages.

    Raises:
      DataError: if nothing would be held out.
    """
    rng = np.random.RandomState(0)
    strata: dict[str, list[int]] = {}
    for row, group in enumerate(groups):
        strata.setdefault(str(group), []).append(row)
    held: list[int] = []
    for rows in strata.values():
        order = rng.permutation(rows)
        held += order[: round(fraction * len(rows))].tolist()
    if not held or len(held) == len(groups):
        what = f"different values of {column!r}" if column else "groups"
        raise DataError(
            f"data.source: {len(groups)} examples in {len(strata)} {what} are too few to hold "
            f"{fraction:.0%} of each out: name the column of classes in data.label, or give a "
            "split of its own in data.test_split"
        )
    kept = np.setdiff1d(np.arange(len(groups)), held)
    return kept, np.array(sorted(held), np.int64)


def draw_stratified(groups: Sequence[object], count: int) -> npt.NDArray[np.int64]:
    """Draw rows in proportion to the sizes of groups, from a fixed seed of its own.

    Args:
      groups: group of each row.
      count: number of rows, 1 to all; what a share leaves over goes to the largest fractions.

    Returns:
      the rows, int64 [count], sorted.
    """
    rng = np.random.RandomState(0)
    strata: dict[str, list[int]] = {}
    for row, group in enumerate(groups):
        strata.setdefault(str(group), []).append(row)
    shares = np.array([len(rows) for rows in strata.values()]) * count
    quotas = shares // len(groups)
    short = np.argsort(-(shares % len(groups)), kind="stable")[: count - quotas.sum()]
    quotas[short] += 1
    drawn = [rng.permutation(rows)[:n] for rows, n in zip(strata.values(), quotas, strict=True)]
    return np.sort(np.concatenate(drawn)).astype(np.int64)


def _rows(column: Column, indices: npt.NDArray[np.int64]) -> Column:
    if isinstance(column, np.ndarray):
        return column[indices]
    if isinstance(column, list):
        return [column[index] for index in indices]
    return Rows(column, indices)
