"""The keys of an experiment file by their dotted names, with the values that some allow."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass

from pydantic import BaseModel

from fedpeft.experiment.fields import fields_of


@dataclass(frozen=True)
class Key:
    """A key that holds a value, not a table.

    Attributes:
      name: with dots, as `--set` takes it.
      about: the first sentence of its description; "" if it has none.
      values: all that it may be, where these are words or truth values; else ().
    """

    name: str
    about: str
    values: tuple[str, ...]


def keys_of(schema: type[BaseModel], prefix: str = "") -> Iterator[Key]:
    """Yield the keys of a schema and of the tables in it, in the order of the reference."""
    for name, field in fields_of(schema).items():
        table = table_of(field.annotation)
        if table is not None:
            yield from keys_of(table, f"{prefix}{name}.")
            continue
        about = " ".join((field.description or "").split()).partition(". ")[0]
        yield Key(f"{prefix}{name}", about, tuple(_values(field.annotation)))


def table_of(annotation: object) -> type[BaseModel] | None:
    """Return the table that a key holds, also where it may be left out; None if it holds none."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        parts = [part for part in typing.get_args(annotation) if part is not type(None)]
        annotation = parts[0] if len(parts) == 1 else annotation
    is_table = isinstance(annotation, type) and issubclass(annotation, BaseModel)
    return annotation if is_table else None  # type: ignore[return-value]  # checked above


def _values(annotation: object) -> Iterator[str]:
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is bool:
        yield from ("true", "false")
    elif origin is typing.Literal:
        yield from map(str, inner)
    elif origin in (typing.Union, types.UnionType):
        for part in inner:
            yield from _values(part)
