"""`list`: tables of everything that an experiment file can name."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from typing import TypeAlias

import typer

from fedpeft.core.errors import ConfigError
from fedpeft.core.words import nearest

__all__ = ["LISTS", "list_command"]

Rows: TypeAlias = list[dict[str, object]]


def list_command(what: str, *, as_json: bool) -> None:
    """Print one of the lists.

    Raises:
      ConfigError: if there is no such list.
    """
    if what not in LISTS:
        raise ConfigError(f"list {what!r}: there is no such list; {nearest(what, LISTS)}")
    rows = LISTS[what]()
    if as_json:
        typer.echo(json.dumps(rows))
        return
    _print_rows(rows)


def _methods() -> Rows:
    from fedpeft.tuning.methods import list_methods

    return [
        {"name": row.name, "from": row.source, "what": row.summary, **row.kinds}
        for row in list_methods()
    ]


def _models() -> Rows:
    from fedpeft.models.catalog import model_rows

    return [
        {
            "name": row.name,
            "task": row.task,
            "parameters": row.parameters,
            "pretrained": row.pretrained,
            "what": row.about,
        }
        for row in model_rows()
    ]


def _datasets() -> Rows:
    from fedpeft.data.bundled import BUNDLED_DATASETS

    named: Rows = [
        {"name": name, "task": row.task, "what": row.summary}
        for name, row in BUNDLED_DATASETS.items()
    ]
    others: Rows = [
        {"name": "owner/name", "task": "any", "what": "a data set of the Hugging Face hub"},
        {"name": "DIR", "task": "any", "what": "saved by `datasets`, image folder, train.csv ..."},
        {"name": "FILE", "task": "any", "what": ".parquet, .csv, .jsonl or .npz"},
    ]
    return [*named, *others]


def _partitions() -> Rows:
    from fedpeft.data.schemes import PARTITIONS

    return [
        {"name": name, "what": row.summary, "keys": ", ".join(row.uses), "needs": row.needs}
        for name, row in PARTITIONS.items()
    ]


def _algorithms() -> Rows:
    from fedpeft.experiment.tables import ALGORITHMS

    return _builders(ALGORITHMS, "algorithms")


def _engines() -> Rows:
    from fedpeft.experiment.engines import ENGINES
    from fedpeft.runs.environment import versions

    return [
        {
            "name": name,
            "installed": None not in versions(kind.needs).values(),
            "what": kind.summary,
        }
        for name, kind in ENGINES.items()
    ]


def _stages() -> Rows:
    from fedpeft.experiment.tables import STAGES

    return _builders(STAGES, "stages")


def _samplers() -> Rows:
    from fedpeft.experiment.tables import SAMPLERS

    what = "each client by a secret coin, for privacy.mode = central"
    poisson: dict[str, object] = {
        "name": "poisson",
        "package": "fedpeft",
        "what": what,
        "options": "",
    }
    return [*_builders(SAMPLERS, "samplers"), poisson]


def _callbacks() -> Rows:
    from fedpeft.experiment.tables import CALLBACKS

    return _builders(CALLBACKS, "callbacks")


def _builders(ours: Mapping[str, Callable[..., object]], group: str) -> Rows:
    """Return a row a builder: ours, then those of installed packages."""
    from fedpeft.experiment.plugins import installed
    from fedpeft.experiment.tables import options_of, summary_of

    def row(name: str, package: str, build: Callable[..., object]) -> dict[str, object]:
        said, options = summary_of(build), _options(options_of(build))
        return {"name": name, "package": package, "what": said, "options": options}

    rows = [row(name, "fedpeft", build) for name, build in ours.items()]
    for name, plugin in installed().of(group).items():
        taken = "not usable: fedpeft has a name like this"
        try:
            found = plugin.load()
            assert callable(found), f"not usable: {plugin.entry.value} is no function"
            rows.append(row(name, plugin.package, found))
            if name in ours:
                rows[-1]["what"] = taken
        except (ConfigError, AssertionError) as error:
            rows.append(
                {"name": name, "package": plugin.package, "what": str(error), "options": ""}
            )
    return rows


LISTS: Mapping[str, Callable[[], Rows]] = {
    "algorithms": _algorithms,
    "callbacks": _callbacks,
    "datasets": _datasets,
    "engines": _engines,
    "methods": _methods,
    "models": _models,
    "partitions": _partitions,
    "samplers": _samplers,
    "stages": _stages,
}
"""By the word after `fedpeft list`."""


def _options(options: Mapping[str, object]) -> str:
    return ", ".join(f"{key} = {value}" for key, value in options.items())


def _print_rows(rows: Rows) -> None:
    """Print a table; a cell that is a reason instead of a yes goes below it."""
    from rich.console import Console
    from rich.table import Table

    reasons: dict[str, int] = {}
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in rows[0]:
        table.add_column(name, no_wrap=name == "name", overflow="fold")
    for row in rows:
        table.add_row(*(_cell(row, column, reasons) for column in row))
    console = Console(width=None if sys.stdout.isatty() else 140, highlight=False)
    console.print(table)
    for reason, number in reasons.items():
        console.print(f"({number}) {reason}", markup=False)


def _cell(row: Mapping[str, object], column: str, reasons: dict[str, int]) -> str:
    value = row[column]
    if column in ("vit", "bert", "llama", "videomae", "plain") and value != "yes":
        return f"no ({reasons.setdefault(str(value), len(reasons) + 1)})"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return "-" if value is None else str(value)
