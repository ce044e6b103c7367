"""`run` and `sweep`: progress on standard error, the result on standard output."""

from __future__ import annotations

import gc
import math
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import typer

from fedpeft.build.privacy_of_run import privacy_words
from fedpeft.cli.ending import Interrupted
from fedpeft.cli.printing import say, show, show_table
from fedpeft.core.errors import RunFolderError
from fedpeft.core.strict_json import to_json
from fedpeft.core.text import brief, byte_words, dotted
from fedpeft.experiment.read import read_experiment, read_toml
from fedpeft.experiment.sweep_rows import SweepRow, read_rows
from fedpeft.launch.progress import Report, show_progress, time_words
from fedpeft.launch.start import run
from fedpeft.launch.sweep import Event, Failed, Finished, results_json, sweep
from fedpeft.launch.sweep_table import TableLine, headline_of, table_lines
from fedpeft.runs.files import read_object
from fedpeft.runs.folder import RunFolder, as_begun, default_out
from fedpeft.runs.records import RoundDone, bytes_of_a_message

_SHOWN = 2
"""Answers of a language model that are printed at the end of a run."""


def run_command(
    file: Path | None, sets: Sequence[str], out: Path | None, *, resume: bool, as_json: bool
) -> None:
    """Run one experiment and print its summary.

    Raises:
      RunFolderError: if there is nothing to resume, and no file or `--set` to start from.
      Interrupted: with the command that resumes the run.
    """
    source = file
    if resume and (out is None or not RunFolder(out).experiment.exists()):
        if file is None and not (sets and out):
            raise RunFolderError(
                f"{out or '--resume'}: there is no run to go on with; name the folder of a run by "
                "--out, or give the experiment file, or --set, to start one"
            )
        say(f"{out}: nothing to resume; a new run starts", err=True)
    elif resume and file is None and out is not None:
        source = RunFolder(out).experiment  # the folder alone is enough to resume
    experiment = read_experiment(source, sets)
    experiment = experiment if source == file else as_begun(experiment)
    gc.freeze()  # what the imports made lives to the end: no collection scans it
    place = out if out or resume else default_out(experiment.name)
    again = ["fedpeft", "run", *([str(file)] if file else []), *_options("--set", sets)]
    try:
        with show_progress(sys.stderr) as report:
            on_round = partial(report, experiment.tuning.method)
            summary = run(experiment, place, resume=resume, on_round=on_round)
    except KeyboardInterrupt as stop:
        kept = place is not None and RunFolder(place).experiment.exists()
        command = shlex.join([*again, "--out", str(place), *(["--resume"] if kept else [])])
        raise Interrupted(f"interrupted; go on with: {command}") from stop
    show(summary, _summary_lines(summary), as_json=as_json)


def sweep_command(
    file: Path | None,
    overrides: tuple[Sequence[str], Sequence[str]],
    out: Path | None,
    results: Path | None,
    *,
    as_json: bool,
) -> int:
    """Run a sweep and print its table.

    Args:
      file: the experiment file; None is the quickstart.
      overrides: the values of `--set` and those of `--over`.
      out: the sweep's folder.
      results: file with a line for each finished run.
      as_json: print the results as a JSON list instead.

    Returns:
      the worst exit code of the runs.

    Raises:
      Interrupted: with the command that resumes the run.
    """
    sets, overs = overrides
    rows = read_rows(file, sets, overs)
    gc.freeze()  # what the imports made lives to the end: no collection scans it
    place = out or default_out(f"{read_toml(file).get('name', 'fedpeft')}-sweep")
    try:
        with show_progress(sys.stderr) as report:
            ends = sweep(rows, place, partial(_report_event, report), results)
    except KeyboardInterrupt as stop:
        again = ["fedpeft", "sweep", *([str(file)] if file else [])]
        again += [*_options("--set", sets), *_options("--over", overs), "--out", str(place)]
        again += _options("--results", [str(results)] if results else [])
        raise Interrupted(f"interrupted; go on with: {shlex.join(again)}") from stop
    found = results_json(rows, ends, place)
    if as_json:
        typer.echo(to_json(found, ascii_only=True))
    else:
        _print_table(table_lines(found))
        say(f"sweep folder: {place}   next: fedpeft report {place}")
    failed = {row.name: end for row in rows if isinstance(end := ends[row.name], Failed)}
    for name, end in failed.items():
        say(f"error: {name}: {end.message}", err=True)
    return max((end.exit_code for end in failed.values()), default=0)


def _options(name: str, values: Sequence[str]) -> list[str]:
    return [part for value in values for part in (name, value)]


def _summary_lines(summary: Mapping[str, Any]) -> Iterator[str]:
    """Yield the headline figures of a run as text."""
    if "delta_digest" not in summary:
        yield f"done; the run folder is on the SuperLink's machine: {summary['run_dir']}"
        return
    metric = headline_of(summary)
    figures = (summary.get(metric), summary.get(f"best_{metric}"))
    score, best = (math.nan if figure is None else figure for figure in figures)
    yield (
        f"{metric} {score:.4g} (best {best:.4g}) after {summary['rounds']} rounds in "
        f"{time_words(float(summary['seconds']))}, method {summary['method']}"
    )
    whole = int(summary["bytes_up"]) + int(summary["bytes_down"])
    down, up = bytes_of_a_message(summary)
    yield (
        f"trained {summary['trainable_parameters']:,} parameters, in theory "
        f"{byte_words(summary['payload_bytes'])} a message; sent {byte_words(up)} up and "
        f"{byte_words(down)} down a client and round, {byte_words(whole)} in all"
    )
    if summary.get("prefix_cache_bytes"):
        yield f"frozen prefix: {summary['prefix']}"
    if "privacy" in summary:
        yield f"privacy: {privacy_words(summary)}"
    if "answers" in summary:
        yield from _answer_lines(summary)
    yield f"run folder: {summary['run_dir']}   next: fedpeft report {summary['run_dir']}"


def _answer_lines(summary: Mapping[str, Any]) -> Iterator[str]:
    """Yield the figures of a language model's answers, and two answers."""
    before, after = (dotted(summary["answers"][side]) for side in ("before", "after"))
    for name, figure in after.items():
        if name != "choices.items":
            words = (
                "not finite" if each is None else f"{each:.4g}" for each in (before[name], figure)
            )
            yield "{}: {} before, {} after".format(name, *words)
    file = RunFolder(Path(summary["run_dir"])).answers
    for each in (read_object(file) or {"answers": []})["answers"][:_SHOWN]:
        yield from ("", f"prompt: {brief(each['prompt'])}", f"expected: {brief(each['reference'])}")
        yield from (f"{side}: {brief(each[side])}" for side in ("before", "after"))
    yield ""


def _report_event(report: Report, row: SweepRow, event: Event) -> None:
    if isinstance(event, RoundDone):
        report(row.name, event)
    elif isinstance(event, Finished):
        report(row.name, "was finished before" if event.skipped else "finished")
    elif isinstance(event, Failed):
        report(row.name, f"failed: {event.message.splitlines()[0]}")


def _print_table(lines: Sequence[TableLine]) -> None:
    metric = lines[0].metric if lines else "accuracy"
    names = ("method", metric, "trained", "payload", "up*", "down*", "total", "time")
    show_table(names, map(_cells, lines), numbers=True)
    say("* bytes sent for each client and round, as encoded; payload is one way, in theory")


def _cells(line: TableLine) -> list[str]:
    whole = line.finished == line.runs
    label = line.label if whole else f"{line.label} ({line.finished}/{line.runs})"
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
