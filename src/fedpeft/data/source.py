"""Sources: from a name in an experiment to tables.

bundled name              digits, digits-inverted, glyphs, docstrings ...
folder                    saved by `datasets`; train/CLASS/*.png; train.csv, test.csv ...
folder with metadata      metadata.csv and the pictures that it names, see `metadata.py`
idx files                 MNIST's format, see `idx_files.py`: a folder, or one file of a data set
file                      .parquet .csv .jsonl .npz, with a `split` column or as one split
file or folder of clips   for video models, see `clip_files.py`
anything else             a data set of the Hugging Face hub
"""

from __future__ import annotations

import difflib
import functools
import logging
from collections.abc import Callable, Mapping
from pathlib import Path

from fedpeft.core.errors import DataError
from fedpeft.data.bundled import BUNDLED_DATASETS
from fedpeft.data.clip_files import read_clip_file, read_clip_folder
from fedpeft.data.files import READERS, full_scale_of, read_split_files, tables_of
from fedpeft.data.folders import (
    by_split,
    folders_in,
    has_pictures,
    is_seen,
    not_read,
    read_image_folder,
    split_named,
)
from fedpeft.data.idx_files import (
    IDX_NAME,
    idx_files_in,
    is_idx_name,
    read_idx_file,
    read_idx_folder,
)
from fedpeft.data.metadata import metadata_in, read_metadata
from fedpeft.data.places import reading
from fedpeft.data.request import DataRequest
from fedpeft.data.separated import AS_USUAL, Separated, read_separated
from fedpeft.data.split_column import split_by_column
from fedpeft.data.tables import Splits, Table
from fedpeft.models.locate import OBJECT
from fedpeft.models.tasks import task_named

_Read = Callable[[Path], dict[str, Table]]

_PACKED = frozenset({".zip", ".gz", ".tgz", ".tar", ".bz2", ".xz", ".zst", ".7z", ".rar"})

_OF_OTHER_FORM = frozenset(READERS) - {".csv", ".tsv"}

_log = logging.getLogger(__name__)


def read_source(request: DataRequest) -> Splits:
    """Read the tables of a data set; pictures are not decoded yet.

    Raises:
      DataError: if the data set does not exist, cannot be read or cannot be reached.
    """
    form = Separated(request.header, request.separator)
    if request.source in BUNDLED_DATASETS or Path(request.source).suffix.lower() in _OF_OTHER_FORM:
        _refuse_form(request.source, form)
    if request.source in BUNDLED_DATASETS:
        return BUNDLED_DATASETS[request.source].read()
    if request.source.startswith(OBJECT):
        raise DataError(
            f"data.source: {request.source!r}: the run trained on data that were passed from "
            "Python; go on with `fedpeft.simulate` and the same data"
        )
    path = Path(request.source).expanduser()
    if task_named(request.task).inputs == "video" and path.exists():
        return Splits(read_clip_folder(path) if path.is_dir() else read_clip_file(path))
    if path.is_file() and is_idx_name(path.name):
        _refuse_form(request.source, form)
        return Splits(read_idx_file(path))
    read = functools.partial(_read_file, form=form)
    if path.is_dir():
        return Splits(_read_folder(path, read))
    if path.is_file():
        return Splits(split_by_column(read(path)), full_scale_of(path))
    if path.suffix.lower() in READERS or request.source.startswith((".", "/", "~")):
        raise DataError(f"data.source: there is no file or folder {request.source!r}")
    return Splits(_read_hub(request))


def choose_splits(splits: Splits, request: DataRequest) -> tuple[Table, Table | None, Table | None]:
    """Return the training, test and validation tables; None where there is no such split.

    Raises:
      DataError: if a split that the experiment names does not exist.
    """
    named = by_split(list(splits.tables), request.source)
    tables = {split: splits.tables[name] for split, name in named.items()}
    chosen = {"train_split": request.train_split, "test_split": request.test_split}
    back = {name: split for split, name in named.items()}
    train_name, test_name = (
        None if name is None else back.get(name, split_named(name) or name)
        for name in chosen.values()
    )
    for field, name in zip(chosen, (train_name, test_name), strict=True):
        if name is not None and name not in tables:
            raise DataError(
                f"data.{field}: there is no split {chosen[field]!r} in {request.source!r}; "
                f"found are {', '.join(named.values())}"
            )
    lone = next(iter(tables)) if len(tables) == 1 else None
    train_name = train_name or ("train" if "train" in tables else lone)
    if train_name is None:
        raise DataError(
            f"data.train_split: {request.source!r} has no split 'train'; found are "
            f"{', '.join(named.values())}: name one"
        )
    others = [name for name in tables if name != train_name]
    test_name = test_name or next((n for n in ("test", "validation") if n in others), None)
    validation = "validation" if "validation" in others and test_name != "validation" else None
    left = [named[name] for name in others if name not in (test_name, validation)]
    if left and not request.whole:
        _log.warning("data: %s: not read: the splits %s", request.source, ", ".join(left))
    return (
        tables[train_name],
        tables[test_name] if test_name else None,
        tables[validation] if validation else None,
    )


def _refuse_form(source: str, form: Separated) -> None:
    """Refuse the keys of separated values for a source of another kind."""
    if form != AS_USUAL:
        key = "header" if not form.header else "separator"
        raise DataError(
            f"data.{key}: {source} is no file of separated values (.csv, .tsv): leave the key out"
        )


def _read_file(path: Path, form: Separated) -> dict[str, Table]:
    """Read a file of a kind that its suffix tells, in any letter case."""
    suffix = path.suffix.lower()
    if suffix in _PACKED:
        raise DataError(
            f"data.source: {path} is packed: unpack it, and give the file or folder that comes out"
        )
    if suffix not in READERS:
        raise DataError(
            f"data.source: {path} ends in {path.suffix!r}; allowed are {', '.join(READERS)}"
        )
    separated = READERS[suffix] is read_separated
    tables = read_separated(path, form) if separated else READERS[suffix](path)
    if not any(len(table) for table in tables.values()):
        raise DataError(f"data.source: {path} has no rows")
    return tables


def _read_folder(path: Path, read: _Read) -> Mapping[str, Table]:
    if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
        return _read_with_datasets(path, saved=True)
    files = [file for file in _seen_in(path) if file.suffix.lower() in READERS]
    if (lists := metadata_in(path)) and not any(map(_split_of, files)):
        return read_metadata(path, lists, read)
    if (idx := idx_files_in(path)) and not any(map(_split_of, files)):
        _say_what_is_not_read(path, idx)
        return read_idx_folder(path)
    pictured = any(has_pictures(folder) for folder in folders_in(path))
    if files and not (pictured and not any(map(_split_of, files))):
        _say_what_is_not_read(path, files)
        return _read_files(files, read)
    if pictured:
        _say_what_is_not_read(path, folders_in(path))
        return read_image_folder(path)
    inner = path / "data"
    if inner.is_dir() and any(file.suffix.lower() in READERS for file in _seen_in(inner)):
        return _read_folder(inner, read)
    raw = path / "raw"  # where torchvision puts what it downloads
    if raw.is_dir() and idx_files_in(raw):
        return read_idx_folder(raw)
    found = ", ".join(each.name for each in sorted(path.iterdir())[:5]) or "nothing"
    raise DataError(
        f"data.source: the folder {path} holds none of: a data set saved by `datasets`, "
        f"CLASS/*.png or train/CLASS/*.png, files that end in {', '.join(READERS)}, idx files such "
        f"as {IDX_NAME}; found: {found}"
    )


def _seen_in(path: Path) -> list[Path]:
    return sorted(each for each in path.iterdir() if each.is_file() and is_seen(each.name))


def _read_files(files: list[Path], read: _Read) -> Mapping[str, Table]:
    """Read files of one split each: `train.csv`, `test-00000-of-00001.parquet`."""
    if len(files) == 1:
        return split_by_column(read(files[0]))
    if any("-of-" in file.stem for file in files):
        return _read_with_datasets(files[0].parent)
    names = by_split([_stem(file) for file in files], files[0].parent)
    return read_split_files(files, list(names), read)


def _stem(file: Path) -> str:
    """Return the name of a file up to its first dot or hyphen: `test` of `test-00000.csv`."""
    return file.name.split(".")[0].split("-")[0]


def _split_of(file: Path) -> str | None:
    return split_named(_stem(file))


def _say_what_is_not_read(path: Path, read: list[Path]) -> None:
    """Warn of what looks like data in a folder and is not read; refuse where it names a split."""
    left = not_read(path, read)
    splits = [name for name in left if _split_of(Path(name)) and Path(name).suffix]
    if splits:
        raise DataError(
            f"data.source: {path}: {splits[0]} names a split, and is of no kind that is read "
            f"({', '.join(READERS)}): convert it, or move it elsewhere"
        )
    if left:
        more = f" and {len(left) - 5} more" if len(left) > 5 else ""
        _log.warning("data: %s: not read: %s%s", path, ", ".join(left[:5]), more)


def _read_with_datasets(path: Path, *, saved: bool = False) -> Mapping[str, Table]:
    """Read a folder with the `datasets` library.

    Args:
      path: the folder: saved by the library, or laid out like a data set of the hub, with several
        files for each split.
      saved: whether the library saved the folder.
    """
    import datasets

    with reading(path, "a folder that `datasets` saved" if saved else "a folder of a data set"):
        if saved:
            return tables_of(datasets.load_from_disk(str(path)))
        return tables_of(datasets.load_dataset(str(path)))


def _read_hub(request: DataRequest) -> Mapping[str, Table]:
    import datasets

    name = request.source
    near = difflib.get_close_matches(name, BUNDLED_DATASETS, n=1)
    hint = f" (is the bundled {near[0]!r} meant?)" if near else ""
    try:
        loaded = datasets.load_dataset(name, request.subset, revision=request.revision)
    except datasets.exceptions.DatasetNotFoundError as error:
        raise DataError(
            f"data.source: {name!r} is unknown: no bundled name ({', '.join(BUNDLED_DATASETS)}), "
            f"file, folder or data set of the hub{hint}"
        ) from error
    except ConnectionError as error:
        raise DataError(
            f"data.source: {name!r} is no bundled name, file or folder, and the hub cannot be "
            f"reached to look for it{hint}; go online, or give the path of a copy ({error})"
        ) from error
    except (ValueError, RuntimeError) as error:
        raise DataError(f"data.source: {name!r} cannot be loaded from the hub: {error}") from error
    return tables_of(loaded)
