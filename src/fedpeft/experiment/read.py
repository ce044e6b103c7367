"""Reading an experiment: file, `--set` overrides, checks, defaults that depend on other keys.

All problems of a file are listed together, each with its key, what was found and what is allowed.
"""

from __future__ import annotations

import importlib.resources
import tomllib
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import tomli_w
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from fedpeft.core.errors import ConfigError, PrivacyError
from fedpeft.core.words import nearest
from fedpeft.experiment.check import problems_of
from fedpeft.experiment.check_privacy import privacy_problems
from fedpeft.experiment.experiment import Experiment, num_clients
from fedpeft.experiment.plugins import Plugins, installed

__all__ = [
    "apply_overrides",
    "dump_experiment",
    "parse_override",
    "read_experiment",
    "read_toml",
    "validate",
]


def read_experiment(file: Path | None, overrides: Sequence[str] = ()) -> Experiment:
    """Read an experiment file, or the bundled quickstart, with `KEY=VALUE` overrides on top.

    Raises:
      ConfigError: listing every problem.
    """
    where = str(file) if file else "quickstart.toml (bundled)"
    table = apply_overrides(read_toml(file), (parse_override(text) for text in overrides))
    return validate(table, where)


def read_toml(file: Path | None) -> dict[str, Any]:
    """Parse a TOML file; None is the bundled quickstart.

    Raises:
      ConfigError: if it does not exist or is not TOML.
    """
    if file is None:
        text = (importlib.resources.files("fedpeft") / "quickstart.toml").read_text("utf-8")
        return tomllib.loads(text)
    try:
        return tomllib.loads(file.read_text("utf-8"))
    except FileNotFoundError:
        raise ConfigError(
            f"{file}: there is no such file. Name a TOML file, or leave it out for the quickstart"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: cannot be read as text: {error}") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{file}: not valid TOML: {error}") from error


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
    except tomllib.TOMLDecodeError:
        return text


def apply_overrides(
    table: Mapping[str, Any], overrides: Iterable[tuple[str, object]]
) -> dict[str, Any]:
    """Return a copy of a nested table with dotted keys replaced.

    Setting a method or an algorithm drops the options that belonged to the old one.

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
                raise ConfigError(f"--set {key}: {'.'.join(parents[: depth + 1])} is not a table")
            place = inner
        if last in ("method", "algorithm") and place.get(last) != value:
            place.pop("options", None)
        place[last] = _copy(value) if isinstance(value, Mapping) else value
    return result


def validate(table: Mapping[str, Any], where: str, plugins: Plugins | None = None) -> Experiment:
    """Check a table against the schema and against itself.

    Args:
      table: as TOML gives it.
      where: names it in errors.
      plugins: what names may mean beside ours; None: whatever is installed here.

    Raises:
      ConfigError: listing every problem, one a line.
      PrivacyError: the same, if all of them are privacy settings that would not protect.
    """
    problems: list[str] = []
    try:
        experiment = Experiment.model_validate(dict(table))
    except ValidationError as error:
        items = _one_a_place([item for item in error.errors() if _fits_branch(item)])
        problems = [_explain(item) for item in items]
        experiment = _without(table, [item["loc"] for item in items])
    problems += problems_of(experiment, installed() if plugins is None else plugins)
    if problems:
        lines = "\n".join(f"  {problem}" for problem in dict.fromkeys(problems))
        count = f"{len(problems)} problems" if len(problems) > 1 else "1 problem"
        unsound = set(privacy_problems(experiment, num_clients(experiment)))
        kind = PrivacyError if set(problems) <= unsound else ConfigError
        raise kind(f"{where}: {count}\n{lines}")
    return experiment


def dump_experiment(experiment: Experiment) -> str:
    """Write an experiment as TOML that `read_experiment` reads back to an equal one."""
    return tomli_w.dumps(experiment.model_dump(mode="python", exclude_none=True))


def _copy(table: Mapping[str, Any]) -> dict[str, Any]:
    return {k: _copy(v) if isinstance(v, Mapping) else v for k, v in table.items()}


def _explain(item: ErrorDetails) -> str:
    """Turn one pydantic error into a line: key, what was found, what is allowed."""
    parts = _path(item["loc"])
    where = ".".join(parts)
    if item["type"] == "extra_forbidden":
        return f"{where}: unknown key; {nearest(parts[-1], _keys_at(parts[:-1]))}"
    found = item.get("input")
    if item["type"] == "missing":
        return f"{where}: is missing and required here"
    shown = f"a table {sorted(found)}" if isinstance(found, Mapping) else repr(found)
    return f"{where}: found {shown}; {_allowed(item)}"


def _without(table: Mapping[str, Any], places: Iterable[Sequence[str | int]]) -> Experiment:
    """Validate what is left without the places that have problems, to find further ones."""
    rest = _copy(table)
    for place in places:
        inner: Any = rest
        for part in _path(place)[:-1]:
            inner = inner.get(part) if isinstance(inner, dict) else None
        if isinstance(inner, dict):
            inner.pop(_path(place)[-1], None)
    try:
        return Experiment.model_validate(rest)
    except ValidationError:
        return Experiment()


_BRANCHES = ("literal[", "dict[", "constrained-", "function-", "Normalization")


def _path(place: Iterable[str | int]) -> list[str]:
    """Return the keys of a pydantic location, without its names of union branches."""
    return [str(part) for part in place if not str(part).startswith(_BRANCHES)]


def _fits_branch(item: ErrorDetails) -> bool:
    """Whether an error is of the branch of a union that the user meant: table or plain value."""
    branch = next((str(p) for p in item["loc"] if str(p).startswith(_BRANCHES)), None)
    if branch is None:
        return True
    wants_table = branch.startswith(("dict[", "Normalization"))
    deep = str(item["loc"][-1]) != branch
    return wants_table == (isinstance(item.get("input"), Mapping) or deep)


def _one_a_place(items: list[ErrorDetails]) -> list[ErrorDetails]:
    """Of a number or a word, keep what is said of the one that was given."""
    words = {tuple(_path(item["loc"])) for item in items if item["type"] == "literal_error"}
    numbers = {tuple(_path(item["loc"])) for item in items if item["type"] != "literal_error"}
    both = words & numbers
    return [
        item
        for item in items
        if tuple(_path(item["loc"])) not in both
        or isinstance(item.get("input"), str) == (item["type"] == "literal_error")
    ]


def _allowed(item: ErrorDetails) -> str:
    message = str(item["msg"])
    if item["type"] == "model_type":
        return "allowed is a table"
    return "allowed is " + message.removeprefix("Input should be ").removeprefix("Value should be ")


def _keys_at(parts: Sequence[str]) -> list[str]:
    model: type[BaseModel] = Experiment
    for part in parts:
        field = model.model_fields.get(part)
        annotation = field.annotation if field else None
        options = [annotation, *typing.get_args(annotation)]
        tables = [o for o in options if isinstance(o, type) and issubclass(o, BaseModel)]
        if not tables:
            return []
        model = tables[0]
    return list(model.model_fields)
