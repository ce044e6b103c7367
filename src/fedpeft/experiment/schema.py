"""From the errors of a schema to lines that a user can act on.

client.epochs: found 0; allowed is greater than or equal to 1
client.lrr: unknown key; did you mean 'lr'?
"""

from __future__ import annotations

import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from fedpeft.core.text import MOST_LISTED, hints, shown
from fedpeft.experiment.fields import fields_of

_BRANCHES = ("literal[", "dict[", "constrained-", "function-", "Normalization")
"""Beginnings of pydantic's names for the branches of a union."""


@dataclass(frozen=True)
class Problem:
    """A problem at one place of a table.

    Attributes:
      path: keys that lead there.
      line: the key, what was found and what is allowed.
    """

    path: tuple[str, ...]
    line: str


def explain(error: ValidationError, schema: type[BaseModel]) -> list[Problem]:
    """Translate the errors of a schema; for a union, those of the branch that the user meant."""
    errors = error.errors(include_url=False, include_context=False)
    items = _one_a_place([item for item in errors if _fits_branch(item)])
    unknown = _hints([_path(item) for item in items if item["type"] == "extra_forbidden"], schema)
    return [Problem(_path(item), _line(item, unknown)) for item in items]


def listed(where: str, lines: Sequence[str]) -> str:
    """Write a list of problems: where, how many, then one a line."""
    count = "1 problem" if len(lines) == 1 else f"{len(lines):,} problems"
    more = [f"... and {len(lines) - MOST_LISTED:,} more"] if len(lines) > MOST_LISTED else []
    return "\n  ".join([f"{where}: {count}", *lines[:MOST_LISTED], *more])


def _hints(
    paths: Sequence[tuple[str, ...]], schema: type[BaseModel]
) -> Mapping[tuple[str, ...], str]:
    """Return what follows each unknown key: the nearest one of its table."""
    tables: dict[tuple[str, ...], list[str]] = {}
    for *table, key in paths:
        tables.setdefault(tuple(table), []).append(key)
    return {
        (*table, key): hint
        for table, keys in tables.items()
        for key, hint in zip(keys, hints(keys, _keys_at(schema, table)), strict=True)
    }


def _line(item: ErrorDetails, unknown: Mapping[tuple[str, ...], str]) -> str:
    path, found = _path(item), item.get("input")
    where, kind = ".".join(path), item["type"]
    if kind == "extra_forbidden":
        return f"{where}: unknown key{unknown[path]}"
    if kind == "missing":
        return f"{where}: is missing and required here"
    words = f"a table {shown(sorted(found))}" if isinstance(found, Mapping) else shown(found)
    allowed = str(item["msg"])
    for beginning in ("Input should be ", "Value should be ", "String should have "):
        allowed = allowed.removeprefix(beginning)
    return f"{where}: found {words}; allowed is {'a table' if kind == 'model_type' else allowed}"


def _path(item: ErrorDetails) -> tuple[str, ...]:
    """Return the keys of an error's place, without the names of union branches."""
    return tuple(str(part) for part in item["loc"] if not str(part).startswith(_BRANCHES))


def _fits_branch(item: ErrorDetails) -> bool:
    """Whether an error is of the branch of a union that the user meant: table or plain value."""
    branch = next((str(p) for p in item["loc"] if str(p).startswith(_BRANCHES)), None)
    if branch is None:
        return True
    is_table = branch.startswith(("dict[", "Normalization"))
    deep = str(item["loc"][-1]) != branch
    return is_table == (isinstance(item.get("input"), Mapping) or deep)


def _one_a_place(items: Sequence[ErrorDetails]) -> list[ErrorDetails]:
    """Keep one error where a number or a word is allowed: that of the kind that was given."""
    words = {_path(item) for item in items if item["type"] == "literal_error"}
    both = words & {_path(item) for item in items if item["type"] != "literal_error"}
    return [
        item
        for item in items
        if _path(item) not in both
        or isinstance(item.get("input"), str) == (item["type"] == "literal_error")
    ]


def _keys_at(schema: type[BaseModel], path: Iterable[str]) -> list[str]:
    """Return the keys of the table that a path leads to."""
    for part in path:
        field = fields_of(schema).get(part)
        annotation = field.annotation if field else None
        options = [annotation, *typing.get_args(annotation)]
        tables = [o for o in options if isinstance(o, type) and issubclass(o, BaseModel)]
        if not tables:
            return []
        schema = tables[0]
    return list(fields_of(schema))
