"""Pictures that a table names: metadata.csv, .tsv, .jsonl or .parquet beside them.

pictures/metadata.csv          file_name,label        one table; a column `split`, or names that
pictures/train/0.png           train/0.png,cat        begin with the folders of splits

pictures/train/metadata.csv    file_name,label        one table a split
pictures/train/0.png           0.png,cat
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PureWindowsPath

import numpy as np

from fedpeft.core.errors import DataError
from fedpeft.data.folders import by_split, folders_in, pictures_in, split_named
from fedpeft.data.places import in_folder
from fedpeft.data.split_column import split_by_column
from fedpeft.data.tables import Table, select, values_of

_log = logging.getLogger(__name__)

_STEM, _SUFFIXES = "metadata", (".csv", ".tsv", ".jsonl", ".parquet")
_COLUMN = "file_name"

_Read = Callable[[Path], Mapping[str, Table]]


def metadata_in(path: Path) -> list[Path]:
    """Return the tables that list pictures: the one in a folder, or those in its subfolders.

    Raises:
      DataError: if a folder holds two of them.
    """
    own = _lists(path)
    return own or [found for folder in folders_in(path) for found in _lists(folder)]


def read_metadata(path: Path, lists: Sequence[Path], read: _Read) -> dict[str, Table]:
    """Read the tables that `metadata_in` found; a warning tells pictures that they do not name.

    Args:
      path: the folder of the data set.
      lists: paths of the tables.
      read: reads the splits of one file.

    Raises:
      DataError: if a table does not name pictures, or two stand for one split.
    """
    tables = {each: _only(each, read(each)) for each in lists}
    for each, table in tables.items():
        _warn_of_others(each, table)
    if [each.parent for each in lists] == [path]:
        return _parted(next(iter(tables.values())))
    names = by_split([each.parent.name for each in lists], path)
    return dict(zip(names, tables.values(), strict=True))


def _lists(folder: Path) -> list[Path]:
    found = [
        file
        for file in sorted(folder.iterdir())
        if file.stem.casefold() == _STEM and file.suffix.lower() in _SUFFIXES and file.is_file()
    ]
    if len(found) > 1:
        raise DataError(
            f"data.source: {folder} holds {found[0].name} and {found[1].name}: remove one"
        )
    return found


def _only(path: Path, tables: Mapping[str, Table]) -> Table:
    """Return the one table of a file, its pictures in the column `image`."""
    table = next(iter(tables.values()))
    if _COLUMN not in table.columns:
        raise DataError(
            f"data.source: {path} has the columns {', '.join(table.columns)}; needed is "
            f"{_COLUMN}, the path of a picture from the folder of that file"
        )
    return table


def _parted(table: Table) -> dict[str, Table]:
    """Split a table by its column, or by the folders of splits in which its pictures are."""
    parted = split_by_column({"train": table})
    files = [str(name) for name in values_of(table.columns[_COLUMN])]
    splits = np.array([split_named(PureWindowsPath(name).parts[0]) or "" for name in files])
    if len(parted) > 1 or "" in splits:
        return parted
    return {split: select(table, np.flatnonzero(splits == split)) for split in np.unique(splits)}


def _warn_of_others(path: Path, table: Table) -> None:
    named = {in_folder(path.parent, str(name)) for name in values_of(table.columns[_COLUMN])}
    left = [file for file in pictures_in(path.parent) if file not in named]
    if left:
        _log.warning(
            "data: %s: not read: %d pictures that it does not name, such as %s",
            path,
            len(left),
            left[0].name,
        )
