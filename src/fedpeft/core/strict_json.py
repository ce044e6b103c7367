"""Strict JSON: what other programs can read. A number that is not finite does not exist: null."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping


def without_nan(value: object) -> object:
    """Return a value with None in place of every number that is not finite, at any depth."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {name: without_nan(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(each) for each in value]
    return value


def to_json(value: object, *, indent: int | None = None, ascii_only: bool = False) -> str:
    """Write a value as strict JSON, with null for numbers that are not finite.

    Args:
      value: what JSON can hold.
      indent: blanks of a level; None: one line.
      ascii_only: escape all other characters.
    """
    return json.dumps(without_nan(value), indent=indent, ensure_ascii=ascii_only, allow_nan=False)
