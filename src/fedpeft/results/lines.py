"""A results file: one line of JSON for each finished run, enough to tabulate it without its folder.

    {"experiment": digest, "settings": {...}, "rounds": {"round": [...], "bytes_up": [...], ...,
     "metric": [...]}, "summary": {...}, "environment": {...}}

Rounds are columns: the headline metric, the size of the cohort, and what else a record has.

The file grows line by line, so that it can be kept under version control while a grid runs; the
digest covers every key that can change a result, and the content of local models and data, so that
a sweep on another machine counts a line as done. A line holds no path: its settings name a local
file or folder as `questions.csv@1f0a22c4`, by its last name and the beginning of its digest. A last
line that was cut off is as if it had not been written.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedpeft.core.errors import RunFolderError
from fedpeft.core.strict_json import to_json
from fedpeft.experiment.experiment import Experiment
from fedpeft.results.contents import by_content, portable
from fedpeft.results.runs import Run, find_runs, read_run
from fedpeft.runs.folder import experiment_digest

_LEFT_OUT = ("metrics", "client_metrics", "client_metrics_by_class", "update_norm")
"""Of a round's record: the headline metric has a column of its own."""
_ENVIRONMENT = ("versions", "task", "metric")
_COUNTS = ("clients", "examples", "evaluated")
"""Of the data, in the environment: numbers, and no name."""
_BEGINS = '{"experiment": "'


def line_digest(experiment: Experiment) -> str:
    """Return the SHA-256 (hex) of a resolved experiment with its seed and number of rounds.

    Local models and data count by what is in them, wherever they are.

    Raises:
      RunFolderError: if a file of them cannot be read.
    """
    text = f"{experiment_digest(by_content(experiment))} {experiment.federation.rounds}"
    return hashlib.sha256(text.encode()).hexdigest()


def append_line(file: Path, digest: str, folder: Path) -> None:
    """Append the line of a finished run, and wait until the disk has it.

    Args:
      file: the results file; made where there is none.
      digest: of the experiment, by `line_digest`.
      folder: of the run.
    """
    line = to_json({"experiment": digest, **_as_line(read_run(folder))}, ascii_only=True)
    with file.open("a+b") as opened:
        opened.seek(0, os.SEEK_END)
        if opened.tell():
            opened.seek(-1, os.SEEK_END)
            if opened.read(1) != b"\n":  # a line that was cut off stays alone
                opened.write(b"\n")
        opened.write(line.encode() + b"\n")
        opened.flush()
        os.fsync(opened.fileno())


def read_lines(file: Path) -> dict[str, Run]:
    """Read a results file: digest of the experiment -> run; {} where there is no file.

    Of two lines of one experiment the later counts. Each run's folder is FILE#LINE.

    Raises:
      RunFolderError: naming the line that is no run of ours.
    """
    return dict(_runs_of(file)) if file.exists() else {}


def read_runs(places: Sequence[Path]) -> list[Run]:
    """Read the runs of results files, run folders and folders of runs.

    Raises:
      RunFolderError: if a place is missing, holds no run, or cannot be read.
    """
    files = [place for place in places if place.is_file()]
    lines = [run for file in files for run in read_lines(file).values()]
    folders = [place for place in places if place not in files]
    return [*lines, *map(read_run, find_runs(folders))]


def _runs_of(file: Path) -> Iterator[tuple[str, Run]]:
    lines = file.read_text("utf-8").split("\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            found = json.loads(line)
            yield str(found["experiment"]), _as_run(found, Path(f"{file}#{number}"))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            ours = line.startswith(_BEGINS) or _BEGINS.startswith(line)
            if ours and isinstance(error, json.JSONDecodeError):
                continue  # as if never written
            raise RunFolderError(
                f"{file}, line {number}: holds no finished run ({type(error).__name__}: {error}); "
                "a results file is written by `fedpeft sweep --results`. Remove the line, or name "
                "another file"
            ) from error


def _as_line(run: Run) -> Mapping[str, object]:
    name = run.metric.name
    keys = dict.fromkeys(key for record in run.rounds for key in record if key not in _LEFT_OUT)
    rounds = {key: [record.get(key) for record in run.rounds] for key in keys}
    if "cohort" in rounds:  # how many, not who
        rounds["cohort"] = [len(x) if isinstance(x, list) else x for x in rounds["cohort"]]
    rounds["metric"] = [record.get("metrics", {}).get(name) for record in run.rounds]
    summary = {key: value for key, value in (run.summary or {}).items() if key != "run_dir"}
    known = run.environment
    environment = {key: known[key] for key in _ENVIRONMENT if key in known}
    if "data" in known:
        environment["data"] = {key: known["data"][key] for key in _COUNTS if key in known["data"]}
    settings = portable(run.settings)
    return {
        "settings": settings, "rounds": rounds, "summary": summary, "environment": environment
    }  # fmt: skip


def _as_run(line: Mapping[str, Any], place: Path) -> Run:
    summary, environment = dict(line["summary"]), dict(line["environment"])
    columns, name = dict(line["rounds"]), str(summary.get("metric", "accuracy"))
    scores = columns.pop("metric")
    records = tuple(
        {key: value for key, value in zip(columns, row, strict=True) if value is not None}
        | {"metrics": {} if score is None else {name: score}}
        for score, *row in zip(scores, *columns.values(), strict=True)
    )
    return Run(place, dict(line["settings"]), records, summary, environment)
