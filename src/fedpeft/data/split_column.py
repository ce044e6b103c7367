"""A lone table whose column `split` says to which split each row belongs.

text     label   split
"..."    cat     train     row 0
"..."    dog     test      row 1
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import numpy as np

from fedpeft.core.errors import DataError
from fedpeft.data.folders import split_named
from fedpeft.data.tables import Table, select, values_of

_log = logging.getLogger(__name__)

_COLUMN = "split"


def split_by_column(tables: Mapping[str, Table]) -> dict[str, Table]:
    """Split a lone table by its column `split`, in any letter case; several are left as they are.

    A warning tells a column of another name that holds names of splits.

    Raises:
      DataError: for the first row whose split is missing.
    """
    table = next(iter(tables.values()))
    if len(tables) > 1:
        return dict(tables)
    name = next((each for each in table.columns if each.strip().casefold() == _COLUMN), None)
    if name is None:
        _warn_of_another(table)
        return dict(tables)
    values = [_split(value, row, table) for row, value in enumerate(values_of(table.columns[name]))]
    found = np.array(values)
    return {split: select(table, np.flatnonzero(found == split)) for split in np.unique(found)}


def _split(value: object, row: int, table: Table) -> str:
    if value is None or value != value or not str(value).strip():
        raise DataError(
            f"data.source: the split is missing in {table.place(row)}: fill it in, or leave the "
            f"column {_COLUMN!r} out"
        )
    return str(value)


def _warn_of_another(table: Table) -> None:
    for name, column in table.columns.items():
        if not (isinstance(column, list) and column and _is_split(column[0])):
            continue
        if len({split_named(str(value)) for value in column}) > 1 and _all_splits(column):
            _log.warning(
                "data: the column %r holds names of splits and is not used: call it %r to train "
                "and test on its splits",
                name,
                _COLUMN,
            )


def _all_splits(column: Sequence[object]) -> bool:
    return all(map(_is_split, column))


def _is_split(value: object) -> bool:
    return isinstance(value, str) and split_named(value) is not None
