"""Local models and data by what is in them: a folder that moved is the same, a changed byte is not.

    file      SHA-256 of its bytes
    folder    SHA-256 over the lines "SHA-256  name" of its files, by name

A file of a set (idx files, a model's `config.json`) stands for all of it. Files whose name, or one
of whose folders' names, begins with a dot do not count. Pictures that a single table names beside
itself do not count either: give their folder.
"""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from fedpeft.core.errors import RunFolderError
from fedpeft.data.idx_files import idx_set_of, is_idx_name
from fedpeft.experiment.experiment import Experiment
from fedpeft.experiment.paths import path_of

_INPUTS = ("model.name", "model.config", "data.source")
_TRACE = "stability.trace"
_OF_THE_MACHINE = ("engine.root_certificates", "engine.signatures", "engine.superlink")


def by_content(experiment: Experiment) -> Experiment:
    """Return an experiment whose local model, data and trace are named by their content alone.

    Raises:
      RunFolderError: if a file of them cannot be read.
    """
    for key in (*_INPUTS, _TRACE):
        table, _, last = key.partition(".")
        value = getattr(getattr(experiment, table), last, None)
        if (path := path_of(key, value)) is not None:
            experiment = experiment.changed(**{table: {last: f"content:{content_digest(path)}"}})
    return experiment


def portable(settings: Mapping[str, object]) -> dict[str, object]:
    """Return settings without paths of this machine: `/data/questions.csv` is `questions.csv@1f0a`.

    Args:
      settings: dotted key -> value. A local model or data set gets its last name and eight digits
        of its content's digest; where it is gone, its last name alone.
    """
    kept = {key: value for key, value in settings.items() if key not in _OF_THE_MACHINE}
    for key in (*_INPUTS, _TRACE):
        value = kept.get(key)
        if (path := path_of(key, value)) is not None:
            kept[key] = f"{path.name}@{content_digest(path)[:8]}"
        elif isinstance(value, str) and os.path.isabs(value):
            kept[key] = Path(value).name
    return kept


def content_digest(path: Path) -> str:
    """Return the SHA-256 (hex) of what a file or folder holds; see the top of this file.

    Raises:
      RunFolderError: if a file cannot be read.
    """
    try:
        if path.is_file() and path.name == "config.json":
            path = path.parent
        if path.is_dir():
            return _of_files({name: file for name, file in _files_in(path)})
        if is_idx_name(path.name):
            return _of_files({file.name: file for file in idx_set_of(path)})
        return _of_file(path)
    except OSError as error:
        raise RunFolderError(
            f"{error.filename or path}: cannot be read ({error.strerror}); its content decides "
            "which lines of a results file count. Give the right to read it, or leave --results out"
        ) from error


def _of_files(files: Mapping[str, Path]) -> str:
    lines = (f"{_of_file(files[name])}  {name}\n" for name in sorted(files))
    digest = hashlib.sha256()
    for line in lines:
        digest.update(line.encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _files_in(folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield the files below a folder with their names from there; links are followed."""
    visited = set[str]()
    for place, inner, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        inner[:] = [] if real in visited else [name for name in inner if name[0] != "."]
        if real in visited:
            continue
        visited.add(real)
        for name in names:
            file = Path(place, name)
            if name[0] != "." and file.is_file():
                yield file.relative_to(folder).as_posix(), file


def _of_file(file: Path) -> str:
    status = file.stat()
    return _hashed(os.path.realpath(file), status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=1 << 17)
def _hashed(file: str, size: int, changed: int) -> str:
    """Return the SHA-256 of a file: read once in a process while size and time stay."""
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
