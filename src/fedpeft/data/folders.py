"""Folders of examples by class, and the names of splits.

    train/CLASS/*.png, test/CLASS/*.png     splits, in any letter case and usual spelling
    CLASS/*.png                             one split

Hidden files and folders are no data.
"""

from __future__ import annotations

import logging
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from fedpeft.core.errors import DataError
from fedpeft.data.tables import Table

_log = logging.getLogger(__name__)

_DEEPEST = 20

IMAGE_SUFFIXES = frozenset(
    {
        ".png",
        ".jpg",
        ".jpeg",
        ".jpe",
        ".jfif",
        ".bmp",
        ".gif",
        ".webp",
        ".tif",
        ".tiff",
        ".ppm",
        ".pgm",
    }
)

_SPLITS: Mapping[str, tuple[str, ...]] = {
    "train": (
        *("train", "training", "trn", "entrenamiento", "entrainement", "apprentissage"),
        *("treino", "treinamento", "addestramento", "训练", "訓練"),
    ),
    "validation": (
        *("validation", "validate", "valid", "val", "dev", "development", "validierung"),
        *("validacion", "validacao", "validazione", "验证", "検証"),
    ),
    "test": (
        *("test", "testing", "tst", "eval", "evaluation", "holdout", "t10k"),
        *("prueba", "pruebas"),
        *("teste", "prova", "测试", "テスト"),
    ),
}
_AROUND = "set|sets|data|dataset|split|images?|imgs?|pictures|photos|files|samples|集"
_SPLIT = re.compile(
    rf"(?:\d+[\W_]*)?(?P<word>{'|'.join(word for words in _SPLITS.values() for word in words)})"
    rf"(?:[\W_]*(?:{_AROUND}|\d{{4}}))*"
)
_ALONGSIDE = frozenset({".md", ".rst", ".toml", ".yaml", ".yml", ".cff", ".bib", ".pdf", ".log"})
_OF_SYSTEMS = frozenset(
    {"__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "@eadir", "#recycle", "$recycle.bin"}
    | {"system volume information", "lost+found", "__pycache__"}
)


def split_named(name: str) -> str | None:
    """Return `train`, `validation` or `test` for a usual name of that split, else None.

    Letter case, accents, a number before and words such as `set`, `data` or `images` after it do
    not count.

    >>> split_named("Training"), split_named("VAL"), split_named("hospital")
    ('train', 'validation', None)
    >>> split_named("test_images"), split_named("train2017"), split_named("trained")
    ('test', 'train', None)
    """
    letters = unicodedata.normalize("NFKD", name.strip().casefold())
    found = _SPLIT.fullmatch("".join(c for c in letters if not unicodedata.combining(c)))
    word = unicodedata.normalize("NFC", found["word"]) if found else None
    return next((split for split, words in _SPLITS.items() if word in words), None)


def refuse_splits_as_clients(names: Sequence[str], where: str) -> None:
    """Refuse names of splits where names of clients are needed.

    Raises:
      DataError: if all of several names are usual names of splits, with the training split's.
    """
    found = [name for name in names if split_named(name)]
    if len(found) > 1 and len(found) == len(names) and "train" in map(split_named, found):
        raise DataError(
            f"{where}: {', '.join(map(repr, found))} are splits, and needed are clients' names: "
            "pass the training and the test data one by one"
        )


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
    """Read `train/CLASS/*.png` and `test/CLASS/*.png`, or `CLASS/*.png` as one split.

    A warning tells which files of these folders are no pictures.
    """
    left: Counter[str] = Counter()

    def find(folder: Path) -> list[Path]:
        files = list(_files(folder))
        pictures = sorted(file for file in files if _is_picture(file.name))
        left.update(
            file.suffix.lower() or file.name
            for file in set(files).difference(pictures)
            if file.suffix.lower() not in _ALONGSIDE
        )
        return pictures

    tables = {}
    for split, (files, labels) in find_by_class(path, find).items():
        paths = [str(file) for file in files]
        tables[split] = Table({"image": paths, "label": labels}, places=paths)
    if left:
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(left.items())[:5])
        _log.warning("data: %s: not read, as no pictures: %s", path, kinds)
    return tables


def find_by_class(
    path: Path, find: Callable[[Path], Sequence[Path]]
) -> dict[str, tuple[list[Path], list[str]]]:
    """Return split -> (examples, the class of each), classes and their examples in sorted order.

    Args:
      path: a folder with `train/CLASS` and other splits, or `CLASS` folders as one split.
      find: gives the examples in the folder of a class. Hidden folders are no classes.

    Raises:
      DataError: if the folders look like splits, hold the classes one level further down, or a
        split holds no examples.
    """
    splits = _splits_in(path)
    if not splits:
        return {"train": _by_class(path, find)}
    found = {split: _by_class(path / name, find) for split, name in splits.items()}
    for split, (files, _) in found.items():
        if not files:
            raise DataError(
                f"data.source: {path / splits[split]}, the {split} split, holds no folder of a "
                "class with examples in it: fill it, or take it away"
            )
    return found


def _splits_in(path: Path) -> dict[str, str]:
    """Return split -> name of its folder; {} where the folders are classes.

    A lone `train` without folders in it is a class among others, as in pictures of vehicles.

    Raises:
      DataError: if folders are named like splits and hold no classes, or classes stand beside a
        training split in which a test split is to be found.
    """
    names = [folder.name for folder in folders_in(path)]
    named = [name for name in names if split_named(name)]
    if len(named) == 1 and len(names) > 1 and not folders_in(path / named[0]):
        return {}
    if named and not any(folders_in(path / name) for name in named):
        raise DataError(
            f"data.source: {path}: {', '.join(map(repr, named))} {_hold(named)} no folders of "
            "classes, such as train/cat: sort the examples into them, or list them with their "
            "labels in metadata.csv"
        )
    splits = by_split(named, path)
    if "train" not in splits:
        _refuse_mixed(path, names, named)
        return {}
    others = [name for name in names if name not in named]
    classes = {folder.name for folder in folders_in(path / splits["train"])}
    alike = [n for n in others if classes & {folder.name for folder in folders_in(path / n)}]
    if alike and len(splits) == 1:
        raise DataError(
            f"data.source: {path}: {alike[0]!r} holds the same folders as {splits['train']!r}, and "
            "is no usual name of a split: call it test or validation, or move it elsewhere"
        )
    if others:
        _log.warning("data: %s: not read: the folders %s", path, ", ".join(others))
    return splits


def _refuse_mixed(path: Path, names: Sequence[str], named: Sequence[str]) -> None:
    """Refuse a split that stands beside the classes of another one."""
    for split in named:
        both = sorted({folder.name for folder in folders_in(path / split)} & {*names})
        if both:
            raise DataError(
                f"data.source: {path}: {split!r} stands beside classes that it holds too "
                f"({', '.join(both[:5])}): move those beside it into a folder 'train'"
            )


def _by_class(path: Path, find: Callable[[Path], Sequence[Path]]) -> tuple[list[Path], list[str]]:
    """Return (examples, the class of each) of a folder of classes; tells what else is in it."""
    examples = {kind: find(kind) for kind in folders_in(path)}
    _refuse_nested(path, examples)
    empty = [kind.name for kind, files in examples.items() if not files]
    if empty:
        _log.warning("data: %s: no class, as nothing is in it: %s", path, ", ".join(empty))
    loose = sum(1 for each in path.iterdir() if each.is_file() and _is_picture(each.name))
    if loose:
        _log.warning("data: %s: not read: %d pictures in no folder of a class", path, loose)
    pairs = [(file, kind.name) for kind, files in examples.items() for file in files]
    return [file for file, _ in pairs], [label for _, label in pairs]


def _hold(names: Sequence[str]) -> str:
    return "holds" if len(names) == 1 else "hold"


def folders_in(path: Path) -> list[Path]:
    """Return the folders in a folder, sorted, without hidden ones; links are followed."""
    return sorted(inner for inner in path.iterdir() if inner.is_dir() and is_seen(inner.name))


def pictures_in(folder: Path) -> list[Path]:
    """Return all pictures under a folder, sorted, without hidden ones; links are followed.

    Raises:
      DataError: if folders lie very deep, as a link back makes them.
    """
    return sorted(file for file in _files(folder) if _is_picture(file.name))


def has_pictures(folder: Path) -> bool:
    """Whether there is any picture under a folder; the search ends at the first."""
    return any(_is_picture(file.name) for file in _files(folder))


def _files(folder: Path) -> Iterator[Path]:
    for place, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if is_seen(name)]
        yield from (Path(place, name) for name in files if is_seen(name))
        if len(Path(place).parts) - len(folder.parts) > _DEEPEST:
            raise DataError(f"data.source: {folder} has folders over {_DEEPEST} deep: a link back?")


def is_seen(name: str) -> bool:
    """Whether a file or folder is data: not hidden, and not left there by a system or program."""
    return not name.startswith((".", "~$")) and name.casefold() not in _OF_SYSTEMS


def not_read(path: Path, files: Sequence[Path]) -> list[str]:
    """Return the names in a folder that look like data and are not among the files to read."""
    left = [each for each in path.iterdir() if each not in files and is_seen(each.name)]
    plain = [each for each in left if each.suffix.lower() not in _ALONGSIDE]
    return sorted(each.name for each in plain if not _is_about(each))


def _is_about(path: Path) -> bool:
    """Whether a file tells about the data; `labels.csv` may be a table of them."""
    stem, names = path.stem.casefold(), path.suffix.lower() in ("", ".txt", ".json")
    about = ("readme", "license", "licence", "dataset_info")
    return stem in about or (names and stem in ("classes", "labels"))


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


def _is_picture(name: str) -> bool:
    return Path(name).suffix.lower() in IMAGE_SUFFIXES
