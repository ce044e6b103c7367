"""`list`: tables of everything that an experiment file can name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

import typer

from fedpeft.cli.printing import say, show_table
from fedpeft.core.errors import ConfigError
from fedpeft.core.strict_json import to_json
from fedpeft.core.text import nearest

if TYPE_CHECKING:
    from fedpeft.data.schemes import Partition
    from fedpeft.models.tasks import Task
    from fedpeft.tuning.methods import TuningMethod


Row: TypeAlias = dict[str, object]

PLACEHOLDERS = ("owner/name", "DIR", "FILE")
"""Rows that stand for names of the user's own."""


def list_command(what: str, *, as_json: bool) -> None:
    """Print one of the lists.

    Raises:
      ConfigError: if there is no such list.
    """
    if what not in LISTS:
        raise ConfigError(f"list {what!r}: there is no such list; {nearest(what, LISTS)}")
    rows = LISTS[what]()
    if as_json:
        typer.echo(to_json(rows, ascii_only=True))
    elif rows:
        _print_rows(rows)
    else:
        say(f"no {what}: fedpeft has none of its own, and no installed package adds any")


def _models() -> list[Row]:
    from fedpeft.models.catalog import model_rows

    return model_rows()


def _datasets() -> list[Row]:
    from fedpeft.data.bundled import BUNDLED_DATASETS

    named: list[Row] = [
        {"name": name, "task": row.task, "what": row.summary}
        for name, row in BUNDLED_DATASETS.items()
    ]
    others = (
        "a data set of the Hugging Face hub",
        "saved by `datasets`, image folder, train.csv ...",
        ".parquet, .csv, .jsonl or .npz",
    )
    for name, what in zip(PLACEHOLDERS, others, strict=True):
        named.append({"name": name, "task": "any", "what": what})
    return named


def _engines() -> list[Row]:
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


def _samplers() -> list[Row]:
    what = "each client by a secret coin flip, for privacy.mode = central"
    poisson: Row = {"name": "poisson", "package": "fedpeft", "what": what, "options": ""}
    return [*_group("samplers", _builder), poisson]


def _group(group: str, describe: Callable[..., Row]) -> list[Row]:
    """Return a row for each name of a group: ours, then those of installed packages."""
    from fedpeft.experiment.plugins import installed
    from fedpeft.experiment.tables import OURS, load_plugin

    ours = OURS[group]
    rows = [{"name": name, "package": "fedpeft", **describe(it)} for name, it in ours.items()]
    for name, plugin in installed().of(group).items():
        row: Row = {"name": name, "package": plugin.package}
        try:
            row |= describe(load_plugin(plugin))
        except ConfigError as error:
            row["what"] = str(error)
        if name in ours:
            row["what"] = "not usable: fedpeft has a name like this"
        rows.append(row)
    return rows


def _builder(build: Callable[..., object]) -> Row:
    from fedpeft.experiment.tables import options_of, summary_of

    options = ", ".join(f"{key} = {value}" for key, value in options_of(build).items())
    return {"what": summary_of(build), "options": options}


def _method(method: TuningMethod) -> Row:
    from fedpeft.tuning.peft_table import KINDS

    return {
        "from": method.source,
        "what": method.summary,
        **{kind: method.refused.get(kind, "yes") for kind in KINDS},
    }


def _partition(partition: Partition) -> Row:
    keys = ", ".join(partition.uses)
    return {"what": partition.summary, "keys": keys, "needs": partition.needs}


_TARGETS = {
    "class": "one class",
    "classes": "any number of classes",
    "number": "a number",
    "tags": "a class of each word",
    "text": "another text",
    "tokens": "each next token",
}


def _task(task: Task) -> Row:
    metric = task.headline
    return {
        "what": f"predicts {_TARGETS[task.targets]} from {task.inputs or 'batches'}",
        "metric": metric.name,
        "better": metric.better,
    }


LISTS: Mapping[str, Callable[[], list[Row]]] = {
    "algorithms": partial(_group, "algorithms", _builder),
    "callbacks": partial(_group, "callbacks", _builder),
    "datasets": _datasets,
    "engines": _engines,
    "methods": partial(_group, "methods", _method),
    "models": _models,
    "partitions": partial(_group, "partitions", _partition),
    "samplers": _samplers,
    "scores": partial(_group, "scores", _builder),
    "stages": partial(_group, "stages", _builder),
    "tasks": partial(_group, "tasks", _task),
}
"""What makes the rows, by the word after `fedpeft list`."""


def _print_rows(rows: list[Row]) -> None:
    """Print a table; a cell that is a reason instead of a yes is written below it."""
    reasons: dict[str, int] = {}
    names = list(dict.fromkeys(name for row in rows for name in row))
    show_table(names, [[_cell(row.get(name), name, reasons) for name in names] for row in rows])
    for reason, number in reasons.items():
        say(f"({number}) {reason}")


def _cell(value: object, column: str, reasons: dict[str, int]) -> str:
    from fedpeft.tuning.peft_table import KINDS

    if column in KINDS and value not in ("yes", None):
        return f"no ({reasons.setdefault(str(value), len(reasons) + 1)})"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return "-" if value is None else str(value)
