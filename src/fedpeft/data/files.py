"""Readers of parquet, csv, jsonl and npz files and of folders of pictures; never unpickled."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from fedpeft.core.errors import DataError
from fedpeft.data.tables import Table

if TYPE_CHECKING:
    import datasets

__all__ = [
    "IMAGE_SUFFIXES",
    "READERS",
    "ImageFiles",
    "find_by_class",
    "full_scale_of",
    "part_by_suffix",
    "read_arrays",
    "read_csv",
    "read_image_folder",
    "read_jsonl",
    "read_npz",
    "read_parquet",
    "read_split_files",
    "tables_of",
]

Array = npt.NDArray[np.generic]

IMAGE_SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}
)


@dataclass(frozen=True)
class ImageFiles:
    """A column of pictures on disk, each read on demand."""

    paths: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int, /) -> object:
        from PIL import Image

        with Image.open(self.paths[index]) as picture:
            picture.load()
            return picture

    def __iter__(self) -> Iterator[object]:
        return (self[row] for row in range(len(self)))


def tables_of(loaded: datasets.Dataset | datasets.DatasetDict) -> dict[str, Table]:
    """Return the splits of a data set of the `datasets` library; a lone one is called `train`."""
    import datasets

    splits = loaded if isinstance(loaded, datasets.DatasetDict) else {"train": loaded}
    return {str(name): _from_dataset(split) for name, split in splits.items()}


def read_parquet(path: Path) -> dict[str, Table]:
    """Read one table, with class names and pictures if `datasets` wrote the file."""
    import datasets
    import pyarrow as pa
    from pyarrow import parquet

    try:
        return {"train": _from_dataset(datasets.Dataset(parquet.read_table(path)))}
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"data.source: {path} is not a parquet file: {error}") from error


def read_csv(path: Path) -> dict[str, Table]:
    """Read one table with a header; empty cells are missing."""
    import pyarrow as pa
    from pyarrow import csv

    options = csv.ParseOptions(newlines_in_values=True)
    try:
        table = csv.read_csv(path, parse_options=options)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"data.source: {path} is not a csv file: {error}") from error
    return {"train": Table({name: table[name].to_pylist() for name in table.column_names})}


def read_jsonl(path: Path) -> dict[str, Table]:
    """Read one JSON object from each line; a key that a line lacks is a missing value there."""
    rows = []
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                rows.append(_parse(path, number, line))
    names = dict.fromkeys(name for row in rows for name in row)
    return {"train": Table({name: [row.get(name) for row in rows] for name in names})}


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
        tables[split] = Table(columns, known)
    return tables


def read_arrays(path: Path) -> dict[str, Array]:
    """Read all arrays of an npz file, or the one of an npy file.

    Raises:
      DataError: if the file is of another form, or needs unpickling.
    """
    try:
        loaded = np.load(path, allow_pickle=False)
        if path.suffix == ".npy":
            return {"array": np.asarray(loaded)}
        with loaded as archive:
            return {name: np.asarray(archive[name]) for name in archive.files}
    except (ValueError, OSError, AttributeError, EOFError, TypeError) as error:
        raise DataError(
            f"data.source: {path} is not an {path.suffix[1:]} file of plain arrays: {error}"
        ) from error


def part_by_suffix(arrays: Mapping[str, Array]) -> dict[str, dict[str, Array]]:
    """Group arrays by the split that their names end in (`x_test`); others belong to `train`."""
    splits: dict[str, dict[str, Array]] = {}
    for name, array in arrays.items():
        stem, _, split = name.rpartition("_")
        inside = stem and split in ("train", "validation", "test")
        splits.setdefault(split if inside else "train", {})[stem if inside else name] = array
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
    with np.load(path, allow_pickle=False) as archive:
        return int(archive["full_scale"]) if "full_scale" in archive.files else 255


def read_image_folder(path: Path) -> dict[str, Table]:
    """Read `train/CLASS/*.png` and `test/CLASS/*.png`, or `CLASS/*.png` as one split."""
    return {
        split: Table({"image": ImageFiles(tuple(map(str, files))), "label": labels})
        for split, (files, labels) in find_by_class(path, _pictures).items()
    }


def find_by_class(
    path: Path, find: Callable[[Path], Sequence[Path]]
) -> dict[str, tuple[list[Path], list[str]]]:
    """Return split -> (examples, the class of each), classes and their examples in sorted order.

    Args:
      path: a folder with `train/CLASS` and other splits, or `CLASS` folders as one split.
      find: gives the examples in the folder of a class. Hidden folders are no classes.
    """
    splits = {folder.name: folder for folder in _folders(path)}
    found = {}
    for split, folder in (splits if "train" in splits else {"train": path}).items():
        pairs = [(file, kind.name) for kind in _folders(folder) for file in find(kind)]
        found[split] = [file for file, _ in pairs], [label for _, label in pairs]
    return found


READERS: Mapping[str, Callable[[Path], dict[str, Table]]] = {
    ".parquet": read_parquet,
    ".csv": read_csv,
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
        row = json.loads(line)
    except json.JSONDecodeError as error:
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


def _folders(path: Path) -> list[Path]:
    return sorted(p for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))


def _pictures(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
