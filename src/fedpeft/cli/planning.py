"""`plan` and `check`: what a run will cost, and what is wrong with its file."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import typer

from fedpeft.build.privacy_of_run import privacy_words
from fedpeft.cli.printing import show
from fedpeft.core.text import byte_words, median_words
from fedpeft.data.summary import MOST_SHOWN
from fedpeft.experiment.experiment import Experiment
from fedpeft.experiment.read import read_experiment
from fedpeft.experiment.sweep_rows import SweepRow, read_rows
from fedpeft.plan.plan import Partition, Plan, check_shapes, make_plan, plan_rows

_SHADES = " ░▒▓█"
_BAR = 32
_SHOWN = 16
_FEW = 6


def plan_command(file: Path | None, sets: Sequence[str], *, as_json: bool) -> None:
    """Print the plan of an experiment, and those of its sweep rows."""
    experiment = read_experiment(file, sets)
    plan = make_plan(experiment)
    rows = plan_rows(read_rows(file, sets)) if experiment.sweep else {}
    found = plan.as_json()
    if rows:
        found["rows"] = [{"row": name, **row.as_json()} for name, row in rows.items()]
    lines = itertools.chain(_figure_lines(plan), _partition_lines(plan.partition), _row_lines(rows))
    show(found, lines, as_json=as_json)


def _row_lines(rows: Mapping[str, Plan]) -> Iterator[str]:
    """Yield one line for each row: payload of a client, of a round, of the run; one way."""
    if not rows:
        return
    width = max(map(len, rows))
    yield f"  {len(rows)} sweep rows: payload of a client, of a round, of all rounds; one way"
    for name, plan in rows.items():
        figures: dict[str, Any] = dict(plan.figures)
        payload = figures["payload_bytes"]
        a_round = payload * figures["cohort"]
        shown = [byte_words(n) for n in (payload, a_round, a_round * figures["rounds"])]
        yield f"    {name:<{width}}  " + "  ".join(f"{text:>10}" for text in shown)


def check_command(file: Path | None, sets: Sequence[str]) -> None:
    """Check an experiment, its sweep rows included.

    Raises:
      ConfigError: listing every problem.
    """
    experiment = read_experiment(file, sets)
    rows = read_rows(file, sets) if experiment.sweep else []
    notes = list(dict.fromkeys(n for each in _shapes(experiment, rows) for n in check_shapes(each)))
    for note in notes:
        typer.echo(f"note: {note}")
    checked = f", {len(rows)} sweep rows" if rows else ""
    typer.echo(f"{file or 'quickstart.toml (bundled)'}: no problems found{checked}")


def _shapes(experiment: Experiment, rows: Sequence[SweepRow]) -> list[Experiment]:
    """Return the base, and one row for each model and tuning that rows set."""
    by_shape = {
        json.dumps([row.experiment.model.model_dump(), row.experiment.tuning.model_dump()]): row
        for row in rows
    }
    return [experiment, *(row.experiment for row in by_shape.values())]


def _figure_lines(plan: Plan) -> Iterator[str]:
    figures: dict[str, Any] = dict(plan.figures)
    trained, total = figures["trainable_parameters"], figures["total_parameters"]
    yield f"{figures['method']} on {figures['model']}"
    yield f"  trained parameters  {trained:,} of {total:,} ({100 * trained / total:.3g} %)"
    if figures["adapted"]:
        yield f"  adapted             {_adapted(figures['adapted'])}"
    if figures["num_labels_assumed"]:
        yield f"  classes             {figures['num_labels']}, {figures['num_labels_assumed']}"
    payload, trainable = figures["payload_bytes"], figures["trainable_payload_bytes"]
    extra = f", of which {byte_words(trainable)} trained" if payload != trainable else ""
    yield f"  payload             {byte_words(payload)} one client, one way, in theory{extra}"
    up, down = figures["wire_bytes_up"], figures["wire_bytes_down"]
    yield f"  as encoded          {byte_words(up)} up, {byte_words(down)} down"
    yield (
        f"  whole run           {byte_words(figures['total_bytes'])} both ways: "
        f"{figures['rounds']} rounds of {figures['cohort']} clients"
    )
    yield f"  memory              {byte_words(figures['memory_bytes'])} without activations"
    yield f"  frozen prefix       {figures['prefix']}"
    if figures["kept_deltas_bytes"]:
        yield f"  kept deltas         {byte_words(figures['kept_deltas_bytes'])} in the run folder"
    if "weights" in figures:
        yield f"  weights             {figures['weights']}"
    yield f"  privacy             {privacy_words(figures)}"


def _adapted(found: Mapping[str, Any]) -> str:
    """Name the adapted layers, the first of many, and say which rule chose them."""
    modules = found["modules"]
    if isinstance(modules, str):
        return f"{modules} ({found['rule']})"
    more = f" and {len(modules) - _FEW} more" if len(modules) > _FEW else ""
    return f"{', '.join(modules[:_FEW])}{more} ({found['rule']})"


def _partition_lines(found: Partition | None) -> Iterator[str]:
    """Draw the largest clients: a bar for the size, and a strip with a shade for each class."""
    if found is None:
        yield (
            "  partition           not shown: the data is not on this machine, or there are more "
            f"than {MOST_SHOWN:,} clients"
        )
        return
    order = sorted(range(len(found.sizes)), key=lambda i: -found.sizes[i])
    sizes = [found.sizes[i] for i in order]
    yield (
        f"  partition           {len(sizes)} clients with {sizes[-1]} to {sizes[0]} examples, "
        f"median {median_words(sizes)}"
    )
    for i in order[:_SHOWN]:
        bar = "█" * max(1, round(_BAR * found.sizes[i] / sizes[0]))
        strip = f"  |{_strip(found.counts[i])}|" if found.counts else ""
        yield f"    {found.clients[i]:>12} {found.sizes[i]:>7} {bar:<{_BAR}}{strip}"
    if len(order) > _SHOWN:
        yield f"    ... and {len(order) - _SHOWN} smaller clients"
    if found.counts:
        yield "    |strip|: one cell a class, darker for more of the client's examples"


def _strip(counts: Sequence[int], width: int = 50) -> str:
    """Shade each class by its share of the client's examples; many classes share a cell."""
    step = -(-len(counts) // width)
    cells = [sum(counts[i : i + step]) for i in range(0, len(counts), step)]
    most = max(cells)
    return "".join(
        _SHADES[-(-(len(_SHADES) - 1) * cell // most)] if most else " " for cell in cells
    )
