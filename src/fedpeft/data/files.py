"""Readers of parquet, csv, tsv, jsonl and npz files; never unpickled.

Whatever a broken file makes a library raise becomes one `DataError` with its path.
"""

from __future__ import annotations

import json
import zipfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from fedpeft.core.errors import DataError
from fedpeft.data.folders import split_named
from fedpeft.data.places import Numbered, check_text, reading
from fedpeft.data.separated import read_separated
from fedpeft.data.tables import USUAL_NAMES, Table

if TYPE_CHECKING:
    import datasets


Array = npt.NDArray[np.generic]


def tables_of(loaded: datasets.Dataset | datasets.DatasetDict) -> dict[str, Table]:
    """Return the splits of a data set of the `datasets` library; a lone one is called `train`."""
    import datasets

    splits = loaded if isinstance(loaded, datasets.DatasetDict) else {"train": loaded}
    return {
        str(name): replace(
            _from_dataset(split),
            places=Numbered(f"the split {str(name)!r}", range(1, len(split) + 1)),
        )
        for name, split in splits.items()
    }


def read_parquet(path: Path) -> dict[str, Table]:
    """Read one table, with class names and pictures if `datasets` wrote the file."""
    import datasets
    from pyarrow import parquet

    with reading(path, "a parquet file"):
        names = parquet.read_schema(path).names
        twice = [name for name, count in Counter(names).items() if count > 1]
        if twice:
            raise DataError(f"data.source: {path} names the column {twice[0]!r} twice: rename one")
        table = _from_dataset(datasets.Dataset(parquet.read_table(path)))
    places = Numbered(str(path), range(1, len(table) + 1))
    return {"train": replace(table, places=places, folder=str(path.parent))}


def read_jsonl(path: Path) -> dict[str, Table]:
    """Read one JSON object from each line; a key that a line lacks is a missing value there."""
    rows = {}
    check_text(path)
    with reading(path, "a jsonl file"), path.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                rows[number] = _parse(path, number, line)
    names = dict.fromkeys(name for row in rows.values() for name in row)
    columns = {name: [row.get(name) for row in rows.values()] for name in names}
    places = Numbered(str(path), tuple(rows), "line")
    return {"train": Table(columns, places=places, folder=str(path.parent))}


def read_npz(path: Path) -> dict[str, Table]:
    """Read the arrays `x_train y_train x_test y_test` (and columns named alike), or `x y client`.

    An array of strings beside the columns gives names to their numbers: `classes` to those of `y`,
    and `domains` to those of `domain`. A number `full_scale` is the pixel value of white, else 255.
    """
    arrays = read_arrays(path)
    parted = part_by_suffix(arrays).items()
    splits = {split: _aligned(path, columns) for split, columns in parted if "x" in columns}
    if "train" not in splits:
        raise DataError(
            f"data.source: {path} holds the arrays {', '.join(arrays)}; "
            "needed are x_train and y_train, or x and y"
        )
    words = {n: tuple(a.tolist()) for n, a in arrays.items() if a.ndim == 1 and a.dtype.kind == "U"}
    tables = {}
    for split, columns in splits.items():
        known = {c: words[w] for c in columns for w in _names_of(c) if w in words}
        places = Numbered(str(path), range(1, len(columns["x"]) + 1))
        tables[split] = Table(columns, known, places)
    return tables


def read_arrays(path: Path) -> dict[str, Array]:
    """Read all arrays of an npz file, or the one of an npy file.

    Raises:
      DataError: if the file is of another form, or needs unpickling.
    """
    kind = f"an {path.suffix[1:]} file of plain arrays"
    if path.suffix == ".npz" and not zipfile.is_zipfile(path):
        raise DataError(f"data.source: {path} is not {kind}: it is damaged, or of another kind")
    with reading(path, kind), path.open("rb") as file:  # numpy would leave a broken one open
        loaded = np.load(file, allow_pickle=False)
        if path.suffix == ".npy":
            return {"array": np.asarray(loaded)}
        with loaded as archive:
            return {name: _plain_array(path, archive, name) for name in archive.files}


def _plain_array(path: Path, archive: Mapping[str, Array], name: str) -> Array:
    try:
        return np.asarray(archive[name])
    except ValueError as error:
        if "allow_pickle" not in str(error):
            raise
        raise DataError(
            f"data.source: {path} is not an npz file of plain arrays: {name!r} holds Python "
            "objects, which are never unpickled; save numbers, or words as an array of strings "
            "(dtype 'U')"
        ) from error


def part_by_suffix(arrays: Mapping[str, Array]) -> dict[str, dict[str, Array]]:
    """Group arrays by the split that their names end in (`x_test`); others belong to `train`."""
    splits: dict[str, dict[str, Array]] = {}
    for name, array in arrays.items():
        stem, _, end = name.rpartition("_")
        split = split_named(end) if stem else None
        splits.setdefault(split or "train", {})[stem if split else name] = array
    return splits


def read_split_files(
    files: Sequence[Path], names: Sequence[str], read: Callable[[Path], Mapping[str, Table]]
) -> dict[str, Table]:
    """Read several files, each of which holds one split.

    Args:
      files: paths of the files.
      names: name of the split in each file.
      read: function that returns the splits of a file.

    Raises:
      DataError: if a file has several splits.
    """
    tables = {}
    for name, file in zip(names, files, strict=True):
        parts = read(file)
        if len(parts) > 1:
            raise DataError(f"data.source: {file} has several splits, as do its neighbours")
        tables[name] = next(iter(parts.values()))
    return tables


def full_scale_of(path: Path) -> int:
    """Return the pixel value of white that an npz file names in `full_scale`; 255 otherwise."""
    if path.suffix != ".npz":
        return 255
    kind = "an npz file of plain arrays"
    with reading(path, kind), path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
        found = archive["full_scale"] if "full_scale" in archive.files else np.array(255)
        if found.size != 1 or found.dtype.kind not in "iuf" or not 1 <= int(found.item()) <= 255:
            raise DataError(f"data.source: {path}: full_scale is {found}; allowed are 1 to 255")
        return int(found.item())


READERS: Mapping[str, Callable[[Path], dict[str, Table]]] = {
    ".parquet": read_parquet,
    ".csv": read_separated,
    ".tsv": read_separated,
    ".jsonl": read_jsonl,
    ".npz": read_npz,
}
"""The reader of each kind of file, by suffix."""


def _from_dataset(split: datasets.Dataset) -> Table:
    names = {
        name: tuple(feature.names)
        for name, feature in split.features.items()
        if hasattr(feature, "names")
    }
    return Table({name: split[name] for name in split.column_names}, names)


def _parse(path: Path, number: int, line: str) -> dict[str, object]:
    try:
        row = json.loads(line, object_pairs_hook=_object, parse_constant=_constant)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"data.source: {path}, line {number} is not JSON: {error}. Each line is one object"
        ) from error
    if not isinstance(row, dict):
        kind = "a list" if isinstance(row, list) else repr(row)[:40]
        raise DataError(
            f"data.source: {path}, line {number} is not a JSON object but {kind}: write one object "
            "a line, and no list around them"
        )
    return row


def _object(pairs: Sequence[tuple[str, object]]) -> dict[str, object]:
    """Return an object of JSON.

    Raises:
      ValueError: if a key stands twice.
    """
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(name for name, count in Counter(n for n, _ in pairs).items() if count > 1)
        raise ValueError(f"it names {twice!r} twice")
    return found


def _constant(word: str) -> float | None:
    """Return NaN, which many programs write for a missing value, as such.

    Raises:
      ValueError: for an infinite number.
    """
    if word != "NaN":
        raise ValueError(f"it holds {word}")
    return None


def _aligned(path: Path, columns: Mapping[str, Array]) -> dict[str, Array]:
    """Keep the arrays that have one row for each row of `x`.

    Raises:
      DataError: if labels or clients have another number of rows.
    """
    counts = {name: len(array) if array.ndim else 1 for name, array in columns.items()}
    if not columns["x"].ndim:
        raise DataError(f"data.source: {path}: x is one number; needed is one row an example")
    for name in (*USUAL_NAMES["label"], *USUAL_NAMES["client"]):
        if counts.get(name, counts["x"]) != counts["x"]:
            raise DataError(
                f"data.source: {path}: x has {counts['x']} rows and {name} has "
                f"{counts[name]}; needed is one row of each for each example"
            )
    return {name: a for name, a in columns.items() if a.ndim and counts[name] == counts["x"]}


def _names_of(column: str) -> tuple[str, ...]:
    return ("classes", "label_names") if column in ("y", "label") else (f"{column}s",)
