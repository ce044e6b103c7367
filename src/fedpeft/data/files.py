"""Readers of parquet, csv, tsv, jsonl and npz files; never unpickled.

Whatever a broken file makes a library raise becomes one `DataError` with its path.
"""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from fedpeft.core.errors import DataError
from fedpeft.data.folders import split_named
from fedpeft.data.tables import Table

if TYPE_CHECKING:
    import datasets


Array = npt.NDArray[np.generic]


@dataclass(frozen=True)
class Numbered:
    """Where the rows of a file stand, in words, for messages.

    Attributes:
      path: of the file.
      numbers: the file's own number of each row, from 1; a range where all are used.
      unit: `row` or `line`.
      header: whether a line with the names of the columns stands before row 1 of a file with one
        line a row, so that a text editor counts one more.
    """

    path: str
    numbers: Sequence[int]
    unit: str = "row"
    header: bool = False

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int, /) -> str:
        number = self.numbers[index]
        after = f" after the header (line {number + 1})" if self.header else ""
        return f"{self.unit} {number}{after} of {self.path}"

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
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(f"data.source: {path} is not {kind}: {said}") from error


def tables_of(loaded: datasets.Dataset | datasets.DatasetDict) -> dict[str, Table]:
    """Return the splits of a data set of the `datasets` library; a lone one is called `train`."""
    import datasets

    splits = loaded if isinstance(loaded, datasets.DatasetDict) else {"train": loaded}
    return {str(name): _from_dataset(split) for name, split in splits.items()}


def read_parquet(path: Path) -> dict[str, Table]:
    """Read one table, with class names and pictures if `datasets` wrote the file."""
    import datasets
    from pyarrow import parquet

    with reading(path, "a parquet file"):
        table = _from_dataset(datasets.Dataset(parquet.read_table(path)))
    places = Numbered(str(path), range(1, len(table) + 1))
    return {"train": replace(table, places=places, folder=str(path.parent))}


def read_csv(path: Path) -> dict[str, Table]:
    """Read one table of comma-separated values with a header; empty cells are missing."""
    return _read_separated(path, ",")


def read_tsv(path: Path) -> dict[str, Table]:
    """Read one table of tab-separated values with a header; empty cells are missing."""
    return _read_separated(path, "\t")


def read_jsonl(path: Path) -> dict[str, Table]:
    """Read one JSON object from each line; a key that a line lacks is a missing value there."""
    rows = {}
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
    splits = {split: _aligned(columns) for split, columns in parted if "x" in columns}
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
    with reading(path, kind), path.open("rb") as file:  # numpy would leave a broken one open
        loaded = np.load(file, allow_pickle=False)
        if path.suffix == ".npy":
            return {"array": np.asarray(loaded)}
        with loaded as archive:
            return {name: np.asarray(archive[name]) for name in archive.files}


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
    ".csv": read_csv,
    ".tsv": read_tsv,
    ".jsonl": read_jsonl,
    ".npz": read_npz,
}
"""The reader of each kind of file, by suffix."""


def _read_separated(path: Path, separator: str) -> dict[str, Table]:
    import pyarrow as pa
    from pyarrow import csv

    options = csv.ParseOptions(delimiter=separator, newlines_in_values=True)
    kind = f"a {path.suffix[1:]} file"
    with reading(path, kind):
        table = csv.read_csv(path, parse_options=options)
    twice = [name for name, count in Counter(table.column_names).items() if count > 1]
    if twice:
        raise DataError(
            f"data.source: {path}: the header names the column {twice[0]!r} twice: rename one"
        )
    odd = [name for name in table.column_names if pa.types.is_binary(table.schema.field(name).type)]
    if odd:
        with reading(path, kind):
            path.read_text("utf-8")
    lone = [name for name in table.column_names if _is_number(name)]
    if lone:
        raise DataError(
            f"data.source: {path}: the first line must name the columns, found is {lone[0]!r}: add "
            "a line such as text,label"
        )
    with path.open("rb") as lines:
        ends = sum(block.count(b"\n") for block in iter(lambda: lines.read(2**20), b""))
    places = Numbered(str(path), range(1, len(table) + 1), header=ends - len(table) in (0, 1))
    columns = {name: table[name].to_pylist() for name in table.column_names}
    return {"train": Table(columns, places=places, folder=str(path.parent))}


def _is_number(name: str) -> bool:
    try:
        return bool(float(name) * 0 == 0)
    except ValueError:
        return False


def _from_dataset(split: datasets.Dataset) -> Table:
    names = {
        name: tuple(feature.names)
        for name, feature in split.features.items()
        if hasattr(feature, "names")
    }
    return Table({name: split[name] for name in split.column_names}, names)


def _parse(path: Path, number: int, line: str) -> dict[str, object]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"data.source: {path}, line {number} is not JSON: {error}") from error
    if not isinstance(row, dict):
        raise DataError(f"data.source: {path}, line {number} is not a JSON object")
    return row


def _aligned(columns: Mapping[str, Array]) -> dict[str, Array]:
    """Keep the arrays that have one row for each row of `x`."""
    rows = len(columns["x"])
    if "y" in columns and len(columns["y"]) != rows:
        raise DataError(f"data.source: x has {rows} rows and y has {len(columns['y'])}")
    return {name: a for name, a in columns.items() if a.ndim and len(a) == rows}


def _names_of(column: str) -> tuple[str, ...]:
    return ("classes", "label_names") if column in ("y", "label") else (f"{column}s",)
