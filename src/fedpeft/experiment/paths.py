"""Paths in an experiment: which keys are paths, and from which folder a relative one counts.

    in a file               from the folder of the file
    --set, --over, Python   from the current folder
    ~, ~name                a home folder, everywhere

A name that comes with the package (`digits`, `vit-glyphs-8`, `preset:...`) is never a path. A name
that could also be of the hub is a path where a file or folder of that name exists.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedpeft.core.errors import ConfigError
from fedpeft.data.bundled import BUNDLED_DATASETS
from fedpeft.data.chat_templates import BUILT_IN
from fedpeft.experiment.chat_template import is_template
from fedpeft.experiment.schema import listed
from fedpeft.models.locate import BUNDLED, OBJECT
from fedpeft.server.traces import PHONES


@dataclass(frozen=True)
class _PathKey:
    """A key of an experiment whose value may be a path.

    Attributes:
      names: values that are no paths, because they come with the package.
      prefixes: beginnings of further ones.
      on_hub: whether another name may be one of the hub.
      inline: whether the value may be the text of the file itself.
    """

    names: Collection[str] = ()
    prefixes: tuple[str, ...] = (OBJECT,)
    on_hub: bool = False
    inline: bool = False

    def is_name(self, value: str) -> bool:
        known = not value or value in self.names or value.startswith(self.prefixes)
        return known or (self.inline and is_template(value))


_MODEL = _PathKey(BUNDLED, ("preset:", OBJECT), on_hub=True)
_KEYS: Mapping[tuple[str, str], _PathKey] = {
    ("model", "name"): _MODEL,
    ("model", "config"): _MODEL,
    ("tuning", "from"): _PathKey(on_hub=True),
    ("data", "source"): _PathKey(BUNDLED_DATASETS, on_hub=True),
    ("data", "chat_template"): _PathKey(BUILT_IN, (), inline=True),
    ("stability", "trace"): _PathKey((PHONES,)),
    ("answers", "choices"): _PathKey(),
    ("engine", "root_certificates"): _PathKey(),
    ("engine", "signatures"): _PathKey(),
}
"""(table, key) -> what its value means; a value is a text, or a list of texts."""

_FILES = (".csv", ".json", ".jsonl", ".npz", ".parquet", ".pt", ".safetensors", ".tsv")


def read_from(
    file: Path | None, table: Mapping[str, Any], overridden: Collection[str] = ()
) -> dict[str, Any]:
    """Return the table of a file with its paths made absolute.

    Args:
      file: relative paths count from its folder; None is the bundled quickstart, which has none.
      table: as TOML gives it.
      overridden: dotted keys whose values in the file are not used.

    Raises:
      ConfigError: listing the paths that do not exist there, but do in the current folder.
    """
    if file is None:
        return dict(table)
    found, problems = dict(table), list[str]()
    for (section, key), kind in _KEYS.items():
        inner = found.get(section)
        if not isinstance(inner, Mapping) or key not in inner:
            continue
        if not {section, f"{section}.{key}"}.isdisjoint(overridden):
            continue
        name = f"{section}.{key}"
        problems += _elsewhere(name, kind, inner[key], _folder_of(file))
        found[section] = {**inner, key: _each(kind, inner[key], _folder_of(file))}
    if problems:
        raise ConfigError(listed(str(file), problems))
    return found


def read_pair(file: Path | None, key: str, value: object) -> tuple[str, object]:
    """Return a dotted key of a file and its value, with paths in it made absolute.

    Raises:
      ConfigError: as `read_from`.
    """
    section, _, last = key.partition(".")
    table = {section: {last: value} if last else value}
    inner = read_from(file, table)[section]
    return key, inner[last] if last else inner


def path_of(key: str, value: object) -> Path | None:
    """Return the file or folder that the value of a dotted key names; None where it names none."""
    section, _, last = key.partition(".")
    kind = _KEYS.get((section, last))
    if kind is None or not isinstance(value, str) or kind.is_name(value):
        return None
    path = Path(os.path.expanduser(value))
    return path if path.exists() else None


def absolute(key: str, value: str) -> str:
    """Return the absolute path where the value of a dotted key is one that exists, else the value.

    A relative path counts from the current folder.
    """
    section, _, last = key.partition(".")
    if _KEYS[section, last].is_name(value):
        return value
    path = os.path.expanduser(value)
    return str(Path(path).resolve()) if os.path.exists(path) else value


def _folder_of(file: Path) -> Path:
    """Return the absolute folder of a file; what is read from a pipe counts from here."""
    pipe = file.exists() and not file.is_file()
    return Path.cwd() if pipe else Path(os.path.abspath(file)).parent


def _each(kind: _PathKey, value: object, folder: Path) -> object:
    """Make a path, or each of a list, absolute; values of another type stay for the schema."""
    if isinstance(value, list):
        return [_each(kind, each, folder) for each in value]
    if not isinstance(value, str) or kind.is_name(value):
        return value
    whole = os.path.expanduser(value)
    there = os.path.normpath(folder / whole)
    if value.startswith("~") or os.path.exists(there) or not (kind.on_hub and _fits_hub(whole)):
        return whole if whole.startswith("~") else there
    return value


def _fits_hub(name: str) -> bool:
    """Whether a name that is no path here may be one of the hub: `name` or `owner/name`."""
    plain = not name.startswith((".", "/", "\\")) and name.count("/") < 2 and "\\" not in name
    return plain and not name.lower().endswith(_FILES)


def _elsewhere(key: str, kind: _PathKey, value: object, folder: Path) -> Iterator[str]:
    """Yield a problem for each relative path that exists in the current folder only."""
    for text in value if isinstance(value, list) else [value]:
        if not isinstance(text, str) or kind.is_name(text):
            continue
        path, here = os.path.expanduser(text), os.path.abspath(os.path.expanduser(text))
        if os.path.isabs(path) or os.path.exists(folder / path) or not os.path.exists(here):
            continue
        yield (
            f"{key}: found {text!r}, which counts from the folder of this file: there is no "
            f"{os.path.normpath(folder / path)}, but there is {here}. Write "
            f"{os.path.relpath(here, folder)!r}, or leave the key out and give --set {key}={text}"
        )
