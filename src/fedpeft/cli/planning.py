"""`plan` and `check`: what a run will cost, and what is wrong with its file."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedpeft.build.privacy_of_run import privacy_words
from fedpeft.cli.printing import say, show, show_table
from fedpeft.core.terminal import NO_BREAK, width_of
from fedpeft.core.text import byte_words, median_words
from fedpeft.data.summary import MOST_SHOWN
from fedpeft.experiment.experiment import Experiment
from fedpeft.experiment.read import read_experiment
from fedpeft.experiment.sweep_rows import SweepRow, read_rows
from fedpeft.plan.plan import Partition, Plan, check_shapes, make_plan, plan_rows

_SHADES = " ░▒▓█"
_BAR, _LEAST_BAR = 32, 8
_STRIP, _LEAST_STRIP = 50, 8
_PAYLOADS = ("a client", "a round", "all rounds")
_SHOWN = 16
_FEW = 6
_MOST_SHAPES = 30


def plan_command(file: Path | None, sets: Sequence[str], *, as_json: bool) -> None:
    """Print the plan of an experiment, and those of its sweep rows."""
    experiment = read_experiment(file, sets)
    plan = make_plan(experiment)
    rows = plan_rows(read_rows(file, sets)) if experiment.sweep else {}
    found = plan.as_json()
    if rows:
        found["rows"] = [{"row": name, **row.as_json()} for name, row in rows.items()]
    width = width_of(sys.stdout)
    lines = itertools.chain(_figure_lines(plan), _partition_lines(plan.partition, width))
    show(found, lines, as_json=as_json)
    if rows and not as_json:
        say(f"  {len(rows)} sweep rows, payload one way:")
        show_table(("row", *_PAYLOADS), map(_row_cells, rows, rows.values()), numbers=True)


def _row_cells(name: str, plan: Plan) -> list[str]:
    figures: dict[str, Any] = dict(plan.figures)
    payload = figures["payload_bytes"]
    a_round = payload * figures["cohort"]
    return [name, *map(byte_words, (payload, a_round, a_round * figures["rounds"]))]


def check_command(file: Path | None, sets: Sequence[str]) -> None:
    """Check an experiment, its sweep rows included.

    Raises:
      ConfigError: listing every problem.
    """
    experiment = read_experiment(file, sets)
    rows = read_rows(file, sets) if experiment.sweep else []
    shapes = _shapes(experiment, rows)
    notes = [note for each in shapes[:_MOST_SHAPES] for note in check_shapes(each)]
    if len(shapes) > _MOST_SHAPES:
        notes.append(
            f"the shapes of {_MOST_SHAPES} of {len(shapes):,} models and tuning methods were "
            "checked; each run checks its own"
        )
    for note in dict.fromkeys(notes):
        say(f"note: {note}")
    checked = f", {len(rows)} sweep rows" if rows else ""
    say(f"{file or 'quickstart.toml (bundled)'}: no problems found{checked}")


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
    yield f"  memory              {_memory(figures['memory_bytes'], figures['memory'])}"
    yield f"  frozen prefix       {figures['prefix']}"
    if figures["kept_deltas_bytes"]:
        yield f"  kept deltas         {byte_words(figures['kept_deltas_bytes'])} in the run folder"
    if "weights" in figures:
        yield f"  weights             {figures['weights']}"
    yield f"  privacy             {privacy_words(figures)}"


def _memory(total: int, parts: Mapping[str, Any]) -> str:
    """Say how much memory training takes, and what for."""
    known = [f"{byte_words(size)} {name}" for name, size in parts.items() if size is not None]
    rest = "" if parts["activations"] is not None else "; without activations"
    return f"{byte_words(total)}: {', '.join(known)}{rest}"


def _adapted(found: Mapping[str, Any]) -> str:
    """Name the adapted layers, the first of many, and say which rule chose them."""
    modules = found["modules"]
    if isinstance(modules, str):
        return f"{modules} ({found['rule']})"
    more = f" and {len(modules) - _FEW} more" if len(modules) > _FEW else ""
    return f"{', '.join(modules[:_FEW])}{more} ({found['rule']})"


def _partition_lines(found: Partition | None, width: int | None) -> Iterator[str]:
    """Draw the largest clients: a bar for the size, and a strip with a shade for each class."""
    if found is None:
        yield (
            "  partition           not shown: the data is not on this machine or unusable, or "
            f"there are more than {MOST_SHOWN:,} clients"
        )
        return
    order = sorted(range(len(found.sizes)), key=lambda i: -found.sizes[i])
    sizes = [found.sizes[i] for i in order]
    yield (
        f"  partition           {len(sizes)} clients with {sizes[-1]} to {sizes[0]} examples, "
        f"median {median_words(sizes)}"
    )
    first = order[:_SHOWN]
    names, digits = max(len(found.clients[i]) for i in first), len(str(sizes[0]))
    classes = len(found.counts[0]) if found.counts else 0
    longest, cells = _shares(None if width is None else width - names - digits - 6, classes)
    for i in first:
        bar = "█" * max(1, round(longest * found.sizes[i] / sizes[0]))
        strip = f"  |{_strip(found.counts[i], cells)}|" if cells else ""
        line = f"    {found.clients[i]:>{names}} {found.sizes[i]:>{digits}} {bar:<{longest}}{strip}"
        yield line.replace(" ", NO_BREAK)
    if len(order) > _SHOWN:
        yield f"    ... and {len(order) - _SHOWN} smaller clients"
    if cells:
        yield "    |strip|: one cell a class, darker for more of the client's examples"


def _shares(room: int | None, classes: int) -> tuple[int, int]:
    """Divide columns between bar and strip; the strip is left out where it would say nothing."""
    cells = min(_STRIP, classes)
    if room is None:
        return _BAR, cells
    cells = min(cells, room - _LEAST_BAR - len("  ||"))
    cells = cells if cells >= min(_LEAST_STRIP, classes) else 0
    return max(1, min(_BAR, room - (cells + len("  ||") if cells else 0))), cells


def _strip(counts: Sequence[int], width: int) -> str:
    """Shade each class by its share of the client's examples; many classes share a cell."""
    step = -(-len(counts) // width)
    cells = [sum(counts[i : i + step]) for i in range(0, len(counts), step)]
    most = max(cells)
    return "".join(
        _SHADES[-(-(len(_SHADES) - 1) * cell // most)] if most else " " for cell in cells
    )
