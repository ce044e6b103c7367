"""Folders of examples by class, and the names of splits.

    train/CLASS/*.png, test/CLASS/*.png     splits, in any letter case and usual spelling
    CLASS/*.png                             one split

Hidden files and folders are no data.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from fedpeft.core.errors import DataError
from fedpeft.data.tables import Table

_log = logging.getLogger(__name__)

_DEEPEST = 20

IMAGE_SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}
)

_SPLITS: Mapping[str, tuple[str, ...]] = {
    "train": ("train", "training", "trn"),
    "validation": ("validation", "valid", "val", "dev", "development"),
    "test": ("test", "testing", "tst", "eval", "evaluation"),
}
_ALONGSIDE = frozenset({".md", ".rst", ".toml", ".yaml", ".yml", ".cff", ".bib", ".pdf", ".log"})


def split_named(name: str) -> str | None:
    """Return `train`, `validation` or `test` for a usual name of that split, else None.

    >>> split_named("Training"), split_named("VAL"), split_named("hospital")
    ('train', 'validation', None)
    """
    plain = name.strip().casefold()
    return next((split for split, names in _SPLITS.items() if plain in names), None)


def by_split(names: Sequence[str], where: object) -> dict[str, str]:
    """Return split -> its name in a source; one with an unusual name is called by that name.

    Raises:
      DataError: if two names stand for one split, as `Train` and `training` do.
    """
    found: dict[str, str] = {}
    for name in names:
        split = split_named(name) or name
        if split in found:
            raise DataError(
                f"data.source: {where} has {found[split]!r} and {name!r}, which both name the "
                f"{split} split: remove or rename one"
            )
        found[split] = name
    return found


def read_image_folder(path: Path) -> dict[str, Table]:
    """Read `train/CLASS/*.png` and `test/CLASS/*.png`, or `CLASS/*.png` as one split."""
    tables = {}
    for split, (files, labels) in find_by_class(path, pictures_in).items():
        paths = [str(file) for file in files]
        tables[split] = Table({"image": paths, "label": labels}, places=paths)
    return tables


def find_by_class(
    path: Path, find: Callable[[Path], Sequence[Path]]
) -> dict[str, tuple[list[Path], list[str]]]:
    """Return split -> (examples, the class of each), classes and their examples in sorted order.

    Args:
      path: a folder with `train/CLASS` and other splits, or `CLASS` folders as one split.
      find: gives the examples in the folder of a class. Hidden folders are no classes.

    Raises:
      DataError: if the folders look like splits, or hold the classes one level further down.
    """
    names = [folder.name for folder in folders_in(path)]
    splits = by_split([name for name in names if split_named(name)], path)
    whole = "train" not in splits
    if not whole and (others := [name for name in names if not split_named(name)]):
        _log.warning("data: %s: not read: the folders %s", path, ", ".join(others))
    found = {}
    for split, name in {"train": ""}.items() if whole else splits.items():
        examples = {kind: find(kind) for kind in folders_in(path / name)}
        if whole:
            _refuse_nested(path, examples)
        pairs = [(file, kind.name) for kind, files in examples.items() for file in files]
        found[split] = [file for file, _ in pairs], [label for _, label in pairs]
    return found


def folders_in(path: Path) -> list[Path]:
    """Return the folders in a folder, sorted, without hidden ones; links are followed."""
    return sorted(inner for inner in path.iterdir() if inner.is_dir() and _is_seen(inner.name))


def pictures_in(folder: Path) -> list[Path]:
    """Return all pictures under a folder, sorted, without hidden ones; links are followed.

    Raises:
      DataError: if folders lie very deep, as a link back makes them.
    """
    return sorted(_walk(folder))


def has_pictures(folder: Path) -> bool:
    """Whether there is any picture under a folder; the search ends at the first."""
    return any(True for _ in _walk(folder))


def _walk(folder: Path) -> Iterator[Path]:
    for place, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if _is_seen(name)]
        yield from (Path(place, name) for name in files if _is_picture(name))
        if len(Path(place).parts) - len(folder.parts) > _DEEPEST:
            raise DataError(f"data.source: {folder} has folders over {_DEEPEST} deep: a link back?")


def not_read(path: Path, files: Sequence[Path]) -> list[str]:
    """Return the names in a folder that look like data and are not among the files to read."""
    left = [each for each in path.iterdir() if each not in files and _is_seen(each.name)]
    plain = [each for each in left if each.suffix.lower() not in _ALONGSIDE]
    words = ("readme", "license", "licence", "dataset_info", "classes", "labels")
    return sorted(each.name for each in plain if each.stem.casefold() not in words)


def _refuse_nested(path: Path, examples: Mapping[Path, Sequence[Path]]) -> None:
    """Refuse folders that hold the same folders: they are splits, sites or one level too many.

    Args:
      path: the folder that holds them.
      examples: folder -> the examples in it; a folder may be one, as a clip is.
    """
    shared = Counter(
        inner.name
        for folder, found in examples.items()
        for inner in set(folders_in(folder)) - set(found)
    )
    if shared and (max(shared.values()) > 1 or len(examples) == 1):
        found = ", ".join(repr(folder.name) for folder in sorted(examples)[:5])
        raise DataError(
            f"data.source: the folders {found} of {path} are no classes: they hold the folders "
            f"{', '.join(repr(name) for name in sorted(shared)[:5])}. Name the splits train, "
            "validation and test, or give the folder that holds the classes"
        )


def _is_seen(name: str) -> bool:
    return not name.startswith(".") and name != "__MACOSX"


def _is_picture(name: str) -> bool:
    return _is_seen(name) and Path(name).suffix.lower() in IMAGE_SUFFIXES
