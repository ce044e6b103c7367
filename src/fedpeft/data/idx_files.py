"""idx files: the format of MNIST, Fashion-MNIST, EMNIST and KMNIST, packed with gzip or not.

    0, 0, type, number of dimensions | size of each dimension, 4 bytes, highest first | the values

    train-images-idx3-ubyte.gz  [N, H, W]       t10k-images-idx3-ubyte.gz
    train-labels-idx1-ubyte.gz  [N]             t10k-labels-idx1-ubyte.gz

The sizes that a header states are compared with the file before memory is taken. Reference: LeCun,
Cortes, Burges, The MNIST Database of Handwritten Digits, 1998 ("The IDX file format").
"""

from __future__ import annotations

import gzip
import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fedpeft.core.errors import DataError
from fedpeft.data.folders import by_split, is_seen, split_named
from fedpeft.data.places import Numbered, reading
from fedpeft.data.tables import Table

IDX_NAME = "train-images-idx3-ubyte.gz"
"""A usual name, for messages."""

_NAME = re.compile(r"(?:(.*)[-_.])?(images|labels)[-_.]idx\d-\w+?(?:\.gz)?", re.IGNORECASE)
_GZIP = b"\x1f\x8b"
_BYTES = 0x08
_OTHER_TYPES = {
    0x09: "signed bytes",
    0x0B: "whole numbers of 16 bits",
    0x0C: "whole numbers of 32 bits",
    0x0D: "floating-point numbers of 32 bits",
    0x0E: "floating-point numbers of 64 bits",
}
_DIMENSIONS = {"images": 3, "labels": 1}
_MOST_PACKED = 2**30
"""Largest number of values that are unpacked into memory; larger files must be unpacked first."""
_MOST_RATIO = 1032
"""Number of bytes that one byte of gzip's format can stand for at most."""
_CHUNK = 2**20

Values = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class _Part:
    """What the name of an idx file says.

    Attributes:
      file: path of the file.
      group: name of the data set, before that of the split; "" without one.
      split: the split's name in the file's name, such as `t10k`.
      kind: `images` or `labels`.
    """

    file: Path
    group: str
    split: str
    kind: str


def is_idx_name(name: str) -> bool:
    """Return whether a file is named as idx files of pictures or labels are.

    >>> is_idx_name("t10k-images.idx3-ubyte"), is_idx_name("train.csv.gz")
    (True, False)
    """
    return is_seen(name) and _NAME.fullmatch(name) is not None


def idx_files_in(folder: Path) -> list[Path]:
    """Return the idx files of a folder, sorted."""
    return sorted(f for f in folder.iterdir() if is_idx_name(f.name) and f.is_file())


def read_idx_folder(folder: Path) -> dict[str, Table]:
    """Read the pictures and labels of one data set, each split with the columns image and label.

    Raises:
      DataError: if a file is damaged or of another type, lacks its counterpart, names no split, or
        if the folder holds several data sets.
    """
    parts = [_part(file) for file in idx_files_in(folder)]
    groups = sorted({part.group for part in parts})
    if len(groups) > 1:
        raise DataError(
            f"data.source: {folder} holds the data sets {', '.join(map(repr, groups))}: give one "
            f"file of the one that is meant, such as {parts[0].file.name}, as data.source"
        )
    return _read_set(parts, folder)


def read_idx_file(file: Path) -> dict[str, Table]:
    """Read the data set to which an idx file belongs: all its splits in the same folder.

    Raises:
      DataError: as `read_idx_folder` does.
    """
    return _read_set([_part(each) for each in idx_set_of(file)], file.parent)


def idx_set_of(file: Path) -> list[Path]:
    """List the idx files of the data set to which one of them belongs; all are in its folder."""
    group = _part(file).group
    return [each for each in idx_files_in(file.parent) if _part(each).group == group]


def read_idx(file: Path, kind: str) -> Values:
    """Read the values of one file.

    Args:
      file: packed with gzip or not, whatever its name says.
      kind: `images` or `labels`, which decides the number of dimensions.

    Returns:
      uint8 [N, H, W] or [N]; that of an unpacked file stays on the disk until it is used.

    Raises:
      DataError: if the file is damaged, of another type or shape, or has another size than its
        header states.
    """
    with reading(file, "an idx file"), file.open("rb") as stream:
        start = stream.read(2)
        stream.seek(0)
        if start == _GZIP:
            with gzip.open(stream, "rb") as unpacked:
                return _unpack(unpacked, file, kind)
        shape, after = _header(stream, file, kind)
        found = file.stat().st_size - after
        _check_size(file, shape, found)
        if not math.prod(shape):
            return np.zeros(shape, np.uint8)
        return np.memmap(file, np.uint8, "r", after, shape)


def _part(file: Path) -> _Part:
    found = _NAME.fullmatch(file.name)
    assert found is not None, "an idx file's name"
    before, kind = found[1] or "", found[2].lower()
    group, _, split = before.rpartition(next((c for c in reversed(before) if c in "-_."), "-"))
    if split_named(split) is None:
        raise DataError(
            f"data.source: {file} names no split before {kind!r}: name it as usual "
            f"({IDX_NAME}, t10k-labels-idx1-ubyte)"
        )
    return _Part(file, group, split, kind)


def _read_set(parts: Sequence[_Part], folder: Path) -> dict[str, Table]:
    """Read the splits of one data set; an unpacked copy goes before a packed one."""
    files: dict[str, dict[str, Path]] = {}
    for part in sorted(parts, key=lambda part: part.file.suffix.lower() == ".gz"):
        files.setdefault(part.split, {}).setdefault(part.kind, part.file)
    names = by_split(sorted(files), folder)
    return {split: _read_split(files[name]) for split, name in names.items()}


def _read_split(files: Mapping[str, Path]) -> Table:
    """Read the pictures and the labels of one split."""
    missing = next((kind for kind in _DIMENSIONS if kind not in files), None)
    if missing is not None:
        there = next(iter(files.values()))
        raise DataError(
            f"data.source: {there} lies there without its {missing}: put both files into the folder"
        )
    images, labels = (read_idx(files[kind], kind) for kind in _DIMENSIONS)
    if len(images) != len(labels):
        raise DataError(
            f"data.source: {files['images']} has {len(images)} pictures and "
            f"{files['labels'].name} has {len(labels)} labels; needed is a label for each picture"
        )
    places = Numbered(str(files["images"]), range(1, len(images) + 1), "picture")
    return Table({"image": images, "label": labels}, places=places)


def _unpack(stream: gzip.GzipFile, file: Path, kind: str) -> Values:
    """Unpack the values of a file, and no more of them than its header states."""
    shape, _ = _header(stream, file, kind)
    size = math.prod(shape)
    packed = file.stat().st_size
    if size > packed * _MOST_RATIO:
        raise DataError(
            f"data.source: {file} states {_words(shape)} values, more than its {packed:,} packed "
            "bytes can hold: it is damaged; fetch it again"
        )
    if size > _MOST_PACKED:
        raise DataError(
            f"data.source: {file} states {_words(shape)} values; up to {_MOST_PACKED:,} are "
            "unpacked into memory: unpack it with gunzip"
        )
    values = bytearray()
    while chunk := stream.read(min(_CHUNK, size + 1 - len(values))):
        values += chunk
        if len(values) > size:
            raise DataError(
                f"data.source: {file} goes on after the {_words(shape)} values that its header "
                "states: it is damaged, or of another kind"
            )
    _check_size(file, shape, len(values))
    return np.frombuffer(values, np.uint8).reshape(shape)


def _header(stream: io.BufferedIOBase, file: Path, kind: str) -> tuple[tuple[int, ...], int]:
    """Return (size of each dimension, number of bytes of the header)."""
    magic = stream.read(4)
    if len(magic) < 4 or magic[:2] != b"\0\0":
        raise DataError(
            f"data.source: {file} is no idx file: it begins with {magic!r}, an idx file with two "
            "bytes of 0; fetch it again"
        )
    if magic[2] != _BYTES:
        found = _OTHER_TYPES.get(magic[2], f"values of the unknown type {magic[2]:#04x}")
        raise DataError(
            f"data.source: {file} holds {found}; allowed are unsigned bytes (type 0x08): convert it"
        )
    if magic[3] != _DIMENSIONS[kind]:
        needed = "3 (pictures, height, width)" if kind == "images" else "1"
        raise DataError(
            f"data.source: {file} has {magic[3]} dimension{'s' * (magic[3] != 1)}; {kind} have "
            f"{needed}: is it another file under this name?"
        )
    sizes = stream.read(4 * magic[3])
    if len(sizes) < 4 * magic[3]:
        raise DataError(f"data.source: {file} ends within its header: fetch it again")
    shape = tuple(int(size) for size in np.frombuffer(sizes, ">u4"))
    if 0 in shape[1:]:
        raise DataError(f"data.source: {file} states {_words(shape)} values: pictures are empty")
    return shape, 4 + len(sizes)


def _check_size(file: Path, shape: tuple[int, ...], found: int) -> None:
    """Refuse a file that has more or fewer values than its header states."""
    if found != math.prod(shape):
        what = "truncated" if found < math.prod(shape) else "longer than it should be"
        raise DataError(
            f"data.source: {file} states {_words(shape)} values and holds {found:,}: it is {what}; "
            "fetch it again"
        )


def _words(shape: tuple[int, ...]) -> str:
    return " x ".join(f"{size:,}" for size in shape)
