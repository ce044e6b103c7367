"""`run` and `sweep`: progress on standard error, the result on standard output."""

from __future__ import annotations

import json
import math
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import typer

from fedpeft.build.privacy_of_run import privacy_words
from fedpeft.cli.ending import Interrupted
from fedpeft.cli.garbage import leave_alone
from fedpeft.core.words import byte_words
from fedpeft.experiment.read import read_experiment, read_toml
from fedpeft.experiment.sweep_rows import SweepRow, read_rows
from fedpeft.launch.progress import Report, show_progress, time_words
from fedpeft.launch.start import run
from fedpeft.launch.sweep import Event, Failed, Finished, RowResult, results_json, sweep
from fedpeft.launch.sweep_table import TableLine, headline_of, table_lines
from fedpeft.runs.folder import RunFolder, default_out
from fedpeft.runs.watch import RoundDone

__all__ = ["run_command", "sweep_command"]


def run_command(
    file: Path | None, sets: Sequence[str], out: Path | None, *, resume: bool, as_json: bool
) -> None:
    """Run one experiment and print its summary.

    Raises:
      Interrupted: saying how to go on.
    """
    source = file
    if resume and file is None and out is not None and RunFolder(out).experiment.exists():
        source = RunFolder(out).experiment  # a run folder alone is enough to go on
    experiment = read_experiment(source, sets)
    leave_alone()
    place = out if out or resume else default_out(experiment.name)
    again = ["fedpeft", "run", *([str(file)] if file else []), *_options("--set", sets)]
    try:
        with show_progress(sys.stderr) as report:

            def on_round(done: RoundDone) -> None:
                report(experiment.tuning.method, done)

            summary = run(experiment, place, resume=resume, on_round=on_round)
    except KeyboardInterrupt as stop:
        command = shlex.join([*again, "--out", str(place), "--resume"])
        raise Interrupted(f"interrupted; go on with: {command}") from stop
    if as_json:
        typer.echo(json.dumps(summary))
        return
    for line in _summary_lines(summary):
        typer.echo(line)


def sweep_command(
    file: Path | None,
    overrides: tuple[Sequence[str], Sequence[str]],
    out: Path | None,
    *,
    as_json: bool,
) -> int:
    """Run a sweep and print its table.

    Args:
      file: the experiment file; None is the quickstart.
      overrides: those of `--set` and of `--over`.
      out: the sweep's folder.
      as_json: print the results as a list instead.

    Returns:
      the worst exit code of the runs.

    Raises:
      Interrupted: saying how to go on.
    """
    sets, overs = overrides
    rows = read_rows(file, sets, overs)
    leave_alone()
    place = out or default_out(f"{read_toml(file).get('name', 'fedpeft')}-sweep")
    try:
        with show_progress(sys.stderr) as report:
            results = sweep(rows, place, lambda row, event: _tell(report, row, event))
    except KeyboardInterrupt as stop:
        again = ["fedpeft", "sweep", *([str(file)] if file else [])]
        again += [*_options("--set", sets), *_options("--over", overs), "--out", str(place)]
        raise Interrupted(f"interrupted; go on with: {shlex.join(again)}") from stop
    found = results_json(rows, {result.row.name: result.end for result in results}, place)
    if as_json:
        typer.echo(json.dumps(found))
    else:
        _print_table(table_lines(found))
        typer.echo(f"sweep folder: {place}   next: fedpeft report {place}")
    _complain(results)
    return max((_code(result) for result in results), default=0)


def _options(name: str, values: Sequence[str]) -> list[str]:
    return [part for value in values for part in (name, value)]


def _summary_lines(summary: Mapping[str, Any]) -> list[str]:
    """Say what came out, in a few lines."""
    if "delta_digest" not in summary:
        return [f"done; the run folder is on the SuperLink's machine: {summary['run_dir']}"]
    metric = headline_of(summary)
    score = f"{metric} {summary.get(metric, math.nan):.4g}"
    best = summary.get(f"best_{metric}", math.nan)
    took = time_words(float(summary["seconds"]))
    turns = max(1, int(summary["rounds"]) * int(summary["cohort"]))
    up, down = int(summary["bytes_up"]), int(summary["bytes_down"])
    return [
        f"{score} (best {best:.4g}) after {summary['rounds']} rounds in {took}, "
        f"method {summary['method']}",
        f"trained {summary['trainable_parameters']:,} parameters, in theory "
        f"{byte_words(summary['payload_bytes'])} a message; sent {byte_words(up / turns)} up and "
        f"{byte_words(down / turns)} down a client and round, {byte_words(up + down)} in all",
        *([f"frozen prefix: {summary['prefix']}"] if summary.get("prefix_cache_bytes") else []),
        *([f"privacy: {privacy_words(summary)}"] if "privacy" in summary else []),
        f"run folder: {summary['run_dir']}   next: fedpeft report {summary['run_dir']}",
    ]


def _tell(report: Report, row: SweepRow, event: Event) -> None:
    if isinstance(event, RoundDone):
        report(row.name, event)
    elif isinstance(event, Finished):
        report(row.name, "was finished before" if event.skipped else "finished")
    elif isinstance(event, Failed):
        report(row.name, f"failed: {event.message.splitlines()[0]}")


def _print_table(lines: Sequence[TableLine]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False)
    metric = lines[0].metric if lines else "accuracy"
    for name in ("method", metric, "trained", "payload", "up*", "down*", "total", "time"):
        table.add_column(name, justify="left" if name == "method" else "right", no_wrap=True)
    for line in lines:
        table.add_row(*_cells(line))
    width = None if sys.stdout.isatty() else 140
    Console(width=width).print(table)
    typer.echo("* bytes sent for each client and round, as encoded; payload is one way, in theory")


def _cells(line: TableLine) -> list[str]:
    label = (
        line.label if line.finished == line.runs else f"{line.label} ({line.finished}/{line.runs})"
    )
    if not line.finished:
        return [label, "failed", *[""] * 6]
    spread = "" if math.isnan(line.deviation) else f" ± {line.deviation:.4f}"
    return [
        label,
        f"{line.mean:.4f}{spread}",
        f"{line.trained:,}",
        byte_words(line.payload_bytes),
        byte_words(line.up_per_turn),
        byte_words(line.down_per_turn),
        byte_words(line.total_bytes),
        time_words(line.seconds),
    ]


def _complain(results: Sequence[RowResult]) -> None:
    for result in results:
        if isinstance(result.end, Failed):
            typer.echo(f"error: {result.row.name}: {result.end.message}", err=True)


def _code(result: RowResult) -> int:
    return result.end.exit_code if isinstance(result.end, Failed) else 0
