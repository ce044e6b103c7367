"""The rows of a sweep: `[[sweep]]` tables, times the grid of `--over`, under `--set`.

    file  <-  one [[sweep]] row  <-  one point of --over  <-  --set      =  one experiment

Each row has a folder of its own, named by what it sets: `method=lora,seed=3`.
"""

from __future__ import annotations

import collections
import hashlib
import itertools
import json
import math
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from fedpeft.core.errors import ConfigError
from fedpeft.core.text import MOST_LISTED, shown
from fedpeft.experiment.experiment import Experiment
from fedpeft.experiment.fields import fields_of
from fedpeft.experiment.paths import read_from, read_pair
from fedpeft.experiment.read import (
    apply_overrides,
    parse_override,
    parse_value,
    read_toml,
    validate,
)

Overrides = Mapping[str, Any]

MOST_ROWS = 5_000
"""Largest number of runs of one sweep."""


@dataclass(frozen=True)
class SweepRow:
    """One run of a sweep.

    Attributes:
      name: name of its folder inside the sweep's; unique.
      overrides: dotted key -> value that the row and `--over` set.
      experiment: the checked experiment of the row.
    """

    name: str
    overrides: Overrides
    experiment: Experiment


def read_rows(
    file: Path | None, sets: Sequence[str] = (), overs: Sequence[str] = ()
) -> list[SweepRow]:
    """Read and check all rows of a sweep.

    Relative paths count as in `read_experiment`: those of `[[sweep]]` from the file's folder.

    Args:
      file: the experiment file; None is the quickstart.
      sets: `KEY=VALUE`, on top of every row.
      overs: `KEY=V1,V2,...`, each multiplies the rows.

    Raises:
      ConfigError: listing the problems of all rows.
    """
    table = read_toml(file)
    where = str(file) if file else "quickstart.toml (bundled)"
    fixed = [parse_override(text) for text in sets]
    rows = _points(table.pop("sweep", []), [parse_over(text) for text in overs], where)
    set_keys, over_keys = {key for key, _ in fixed}, {parse_over(text)[0] for text in overs}
    rows = _unique([{k: v for k, v in row.items() if k not in set_keys} for row in rows])
    names = _names(rows)
    found, problems = list[SweepRow](), list[str]()
    for name, row in zip(names, rows, strict=True):
        if len(problems) == MOST_LISTED:
            break
        try:
            pairs = [
                (key, value) if key in over_keys else read_pair(file, key, value)
                for key, value in _in_order(row)
            ]
            base = read_from(file, table, [*row, *set_keys])
            whole = apply_overrides(base, [*pairs, *fixed], where)
            found.append(SweepRow(name, row, validate(whole, where)))
        except ConfigError as error:
            problems.append(f"{error}\n  in the row {name}")
    if problems:
        raise ConfigError(_joined(problems, checked=len(found) + len(problems), rows=len(rows)))
    return found


def parse_over(text: str) -> tuple[str, list[Any]]:
    """Parse `KEY=V1,V2,...`; each value is TOML, or plain text where it is no TOML value.

    Raises:
      ConfigError: if there is no `=`, no key or no value.
    """
    key, sign, values = text.partition("=")
    if not sign or not key.strip() or not values.strip():
        raise ConfigError(
            f"--over {text}: found no KEY=V1,V2; write for example --over seed=1,42,3407"
        )
    try:
        listed = tomllib.loads(f"value = [{values}]")["value"]
    except tomllib.TOMLDecodeError:
        listed = [parse_value(value.strip()) for value in values.split(",") if value.strip()]
    return key.strip(), list(listed)


def _points(rows: object, overs: Sequence[tuple[str, list[Any]]], where: str) -> list[Overrides]:
    """Multiply the file's rows by the grid; `--over` replaces what a row sets."""
    if not isinstance(rows, list) or not all(isinstance(row, Mapping) for row in rows):
        raise ConfigError(f"{where}: sweep: found {shown(rows)}; write rows as [[sweep]] tables")
    keys = [key for key, _ in overs]
    if len(set(keys)) < len(keys):
        raise ConfigError(f"--over: {', '.join(keys)} names a key twice; list its values once")
    count = max(1, len(rows)) * math.prod(len(values) for _, values in overs)
    if count > MOST_ROWS:
        raise ConfigError(
            f"{where}: found {count:,} sweep rows; allowed are at most {MOST_ROWS:,}. Divide them "
            "among several sweeps"
        )
    grid = [dict(zip(keys, p, strict=True)) for p in itertools.product(*(v for _, v in overs))]
    flat = [dict(_flatten(row, Experiment, "")) for row in rows] or [{}]
    return [_merged(row, point) for row in flat for point in grid]


def _merged(row: Overrides, point: Overrides) -> Overrides:
    """Put a point of the grid on top of a row; a new method or algorithm drops the old options."""
    dropped = [
        f"{key.rpartition('.')[0]}.options."
        for key in ("tuning.method", "federation.algorithm")
        if key in point and point[key] != row.get(key)
    ]
    return {k: v for k, v in row.items() if not k.startswith(tuple(dropped))} | dict(point)


def _flatten(
    table: Mapping[str, Any], model: type[BaseModel] | None, prefix: str
) -> Iterator[tuple[str, Any]]:
    """Turn nested sections and options into dotted keys; a value that is a table stays one."""
    for key, value in table.items():
        inner = _section(model, key)
        if isinstance(value, Mapping) and (inner is not None or key == "options"):
            yield from _flatten(value, inner, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _section(model: type[BaseModel] | None, key: str) -> type[BaseModel] | None:
    field = fields_of(model).get(key) if model else None
    kind = field.annotation if field else None
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def _unique(rows: Sequence[Overrides]) -> list[Overrides]:
    return list({json.dumps(row, sort_keys=True, default=str): row for row in rows}.values())


def _in_order(row: Overrides) -> list[tuple[str, Any]]:
    """Put a method and an algorithm first: setting them drops the options of the old one."""
    return sorted(row.items(), key=lambda item: not item[0].endswith((".method", ".algorithm")))


def _names(rows: Sequence[Overrides]) -> list[str]:
    """Name each row by what it sets, with a digest where that is too long or not unique."""
    plain = [_name(row) for row in rows]
    counts = collections.Counter(plain)
    return [
        name if counts[name] == 1 and len(name) <= 100 else f"{name[:80]}-{_digest(row)}"
        for name, row in zip(plain, rows, strict=True)
    ]


def _name(row: Overrides) -> str:
    parts = [f"{key.rpartition('.')[2]}={_word(value)}" for key, value in row.items()]
    return re.sub(r"[^A-Za-z0-9=,._+-]+", "-", ",".join(parts)) or "run"


def _word(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _digest(row: Overrides) -> str:
    return hashlib.sha256(json.dumps(row, sort_keys=True, default=str).encode()).hexdigest()[:8]


def _joined(problems: Sequence[str], *, checked: int, rows: int) -> str:
    texts = {problem.rpartition("\n  in the row")[0] for problem in problems}
    left = f"\n... and {rows - checked:,} rows that were not checked" if checked < rows else ""
    if len(problems) == 1 or len(texts) > 1:
        return "\n".join(problems) + left
    return f"{texts.pop()}\n  in {len(problems)} of {checked} rows{left}"
