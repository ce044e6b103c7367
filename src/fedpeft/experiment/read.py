"""Reading an experiment: the file, `--set` overrides, checks.

All problems of a file are listed together, each with its key, what was found and what is allowed.
"""

from __future__ import annotations

import importlib.resources
import os
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import tomli_w
from pydantic import ValidationError

from fedpeft.core.errors import ConfigError, PrivacyError
from fedpeft.experiment.chat_template import MOST_CHARACTERS, TEMPLATE_KEY, is_template
from fedpeft.experiment.check import problems_of
from fedpeft.experiment.check_privacy import privacy_problems
from fedpeft.experiment.experiment import Experiment
from fedpeft.experiment.paths import read_from
from fedpeft.experiment.plugins import Plugins, installed
from fedpeft.experiment.schema import explain, listed

DIGITS = Path(str(importlib.resources.files("fedpeft") / "digits.toml"))
"""The bundled experiment on digits, the quick one."""

_LONGEST_NAME = 255  # bytes of a file's name, on all usual file systems
_LONGEST_TEXT = 4096
_LONGEST_LIST = 20_000
_DEEPEST = 50


def read_experiment(file: Path | None, overrides: Sequence[str] = ()) -> Experiment:
    """Read an experiment file, or the bundled quickstart, with `KEY=VALUE` overrides on top.

    Relative paths of the file count from its folder, those of overrides from the current folder.

    Raises:
      ConfigError: listing every problem.
    """
    where = str(file) if file else "quickstart.toml (bundled)"
    pairs = [parse_override(text) for text in overrides]
    table = read_from(file, read_toml(file), [key for key, _ in pairs])
    return validate(apply_overrides(table, pairs), where)


def read_toml(file: Path | None) -> dict[str, Any]:
    """Parse a TOML file; None is the bundled quickstart.

    Raises:
      ConfigError: if it does not exist, is not TOML, or holds a text or list of no use.
    """
    if file is None:
        text = (importlib.resources.files("fedpeft") / "quickstart.toml").read_text("utf-8")
        return tomllib.loads(text)
    try:
        table = tomllib.loads(file.read_text("utf-8-sig"))  # editors of Windows write a mark
    except FileNotFoundError:
        raise ConfigError(
            f"{file}: there is no such file. Name a TOML file, or leave it out for the quickstart"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: cannot be read as text: {error}") from error
    except (ValueError, RecursionError) as error:  # a number of 5,000 digits, a list in 1,000 lists
        raise ConfigError(f"{file}: not valid TOML: {error}") from error
    if _is_deep(table):
        raise ConfigError(f"{file}: found tables in more than {_DEEPEST} tables; allowed are fewer")
    if lines := list(_values_of_no_use(table)):
        raise ConfigError(listed(str(file), lines))
    return table


def _is_deep(table: Mapping[str, Any]) -> bool:
    """Whether tables and lists stand in each other deeper than any experiment needs."""
    layer: list[Any] = [table]
    for _ in range(_DEEPEST):
        layer = [
            inner
            for each in layer
            for inner in (each.values() if isinstance(each, Mapping) else each)
            if isinstance(inner, Mapping | list)
        ]
    return bool(layer)


def parse_override(text: str) -> tuple[str, object]:
    """Parse `KEY=VALUE`; the value is TOML, or plain text where it is no TOML value.

    Raises:
      ConfigError: if there is no `=` or no key.
    """
    key, sign, value = text.partition("=")
    key = key.strip()
    if not sign or not key or not all(key.split(".")):
        raise ConfigError(
            f"--set {text}: found no KEY=VALUE; write for example --set federation.rounds=5"
        )
    return key, parse_value(value.strip())


def parse_value(text: str) -> object:
    """Parse a TOML value; anything else is text."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        return text


def apply_overrides(
    table: Mapping[str, Any], overrides: Iterable[tuple[str, object]], where: str = "--set"
) -> dict[str, Any]:
    """Return a copy of a nested table with dotted keys replaced.

    Setting a method or an algorithm drops the options that belonged to the old one.

    Args:
      table: as TOML gives it.
      overrides: pairs of a dotted key and a value.
      where: what gives the keys, for messages.

    Raises:
      ConfigError: if a key leads through something that is not a table.
    """
    result = _copy(table)
    for key, value in overrides:
        *parents, last = key.split(".")
        place: dict[str, Any] = result
        for depth, parent in enumerate(parents):
            inner = place.setdefault(parent, {})
            if not isinstance(inner, dict):
                raise ConfigError(f"{where} {key}: {'.'.join(parents[: depth + 1])} is not a table")
            place = inner
        if last in ("method", "algorithm") and place.get(last) != value:
            place.pop("options", None)
        place[last] = _plain(value)
    return result


def validate(table: Mapping[str, Any], where: str, plugins: Plugins | None = None) -> Experiment:
    """Check a table against the schema and against itself.

    Args:
      table: as TOML gives it.
      where: the name of the table in errors.
      plugins: names of installed packages that it may use; None: all that are installed here.

    Raises:
      ConfigError: listing every problem, one a line.
      PrivacyError: listing them, if all are privacy settings that would not protect.
    """
    lines = list(_values_of_no_use(table))
    if lines:
        raise ConfigError(listed(where, lines))
    refused: list[tuple[str, ...]] = []
    try:
        experiment = Experiment.model_validate(dict(table))
    except ValidationError as error:
        problems = explain(error, Experiment)
        lines = [problem.line for problem in problems]
        refused = [problem.path for problem in problems]
        experiment = _without(table, refused)
    known = installed() if plugins is None else plugins
    further = [line for line in problems_of(experiment, known) if not _speaks_of(refused, line)]
    lines = list(dict.fromkeys(lines + further))
    if lines:
        unsound = set(privacy_problems(experiment))
        raise (PrivacyError if set(lines) <= unsound else ConfigError)(listed(where, lines))
    return experiment


def dump_experiment(experiment: Experiment) -> str:
    """Write an experiment as TOML that `read_experiment` reads back to an equal one."""
    return tomli_w.dumps(experiment.model_dump(mode="python", exclude_none=True))


def _values_of_no_use(value: object, key: str = "") -> Iterator[str]:
    """Yield a problem for each text that no file or path can have, and for a list too long."""
    if isinstance(value, list | tuple) and len(value) > _LONGEST_LIST and key != "sweep":
        yield f"{key}: found a list of {len(value):,} entries; allowed are {_LONGEST_LIST:,}"
        return
    if isinstance(value, Mapping | list | tuple):
        pairs = value.items() if isinstance(value, Mapping) else enumerate(value)
        for name, inner in pairs:
            if isinstance(name, str):
                yield from _values_of_no_use(name, key)
            if isinstance(inner, str | Mapping | list | tuple):
                yield from _values_of_no_use(inner, f"{key}.{name}".lstrip(".")[:80])
    elif isinstance(value, str):
        if key == TEMPLATE_KEY and is_template(value):
            if len(value) > MOST_CHARACTERS:
                yield f"{key}: found {len(value):,} characters; allowed are {MOST_CHARACTERS:,}"
            return
        longest = max(map(len, value.encode("utf-8", "replace").split(b"/")))
        if longest > _LONGEST_NAME or len(value) > _LONGEST_TEXT:
            yield (
                f"{key}: found a text of {len(value)} characters; allowed are {_LONGEST_TEXT}, and "
                f"{_LONGEST_NAME} bytes between two slashes"
            )
        elif "\0" in value:
            yield f"{key}: found {value!r}; a text without the character NUL is allowed"
        elif value.startswith("~") and os.path.expanduser(value) == value:
            yield f"{key}: found {value!r}; there is no user of this name: write the whole path"


def _copy(table: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _plain(value) for key, value in table.items()}


def _plain(value: object) -> object:
    """Copy a table; a path object, which only Python can give, becomes a text."""
    if isinstance(value, Mapping):
        return _copy(value)
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _speaks_of(keys: Iterable[Sequence[str]], line: str) -> bool:
    """Tell whether a problem names a key that was refused: it would judge the default instead."""
    names = (re.escape(".".join(key)) for key in keys if len(key) > 1)
    return any(re.search(rf"(?<![\w.]){name}(?![\w.]*\w)", line) for name in names)


def _without(table: Mapping[str, Any], paths: Iterable[Sequence[str]]) -> Experiment:
    """Validate a table without the places that have problems, to find further ones."""
    rest = _copy(table)
    for *parents, last in paths:
        inner: Any = rest
        for part in parents:
            inner = inner.get(part) if isinstance(inner, dict) else None
        if isinstance(inner, dict):
            inner.pop(last, None)
    try:
        return Experiment.model_validate(rest)
    except ValidationError:
        return Experiment()
