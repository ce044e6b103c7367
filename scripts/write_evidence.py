"""Condense results files into the evidence that `fedpeft advise` reads.

    experiments/results/*.jsonl  ->  src/fedpeft/results/evidence.json

Test accuracy of finished runs counts, of pretrained models, where at least two methods were
measured in one setting. Where no line tells the task and the number of examples, data and model are
opened; local ones are known by their lines alone.

    python scripts/write_evidence.py [FILE.jsonl ...] [--out FILE.json]
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedpeft.build.model import load_run_data, sketch_run
from fedpeft.core.errors import FedpeftError
from fedpeft.data.summary import num_examples
from fedpeft.experiment.experiment import Experiment
from fedpeft.experiment.resolve import resolve
from fedpeft.results.evidence import Evidence, Facts, condense, write_evidence
from fedpeft.results.lines import read_runs
from fedpeft.results.runs import Run

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "experiments" / "results"
OUT = ROOT / "src" / "fedpeft" / "results" / "evidence.json"


def main(args: Sequence[str] | None = None) -> None:
    """Read the lines, write the evidence, say what is in it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("files", nargs="*", type=Path, help="default: experiments/results/*.jsonl")
    parser.add_argument("--out", type=Path, default=OUT)
    chosen = parser.parse_args(args)
    evidence = condensed(read_runs(chosen.files or sorted(RESULTS.glob("*.jsonl"))))
    write_evidence(evidence, chosen.out)
    for cell in evidence.cells:
        methods = ", ".join(f"{entry.label} ({len(entry.seeds)})" for entry in cell.entries)
        print(f"{cell.bed}, {cell.model}: {cell.setting.words}: {methods}")
    size = chosen.out.stat().st_size
    print(f"{chosen.out}: {evidence.runs} runs in {len(evidence.cells)} settings, {size:,} bytes")


def condensed(runs: Sequence[Run]) -> Evidence:
    """Condense runs; what they do not tell comes from data and models on this machine."""
    return condense(runs, facts_of)


def facts_of(run: Run) -> Facts:
    """Open a run's data, and find its task from its model's configuration."""
    keys = ("data.", "model.", "federation.clients")
    known = {key: value for key, value in run.settings.items() if key.startswith(keys)}
    try:
        return _facts(tuple(sorted((key, _frozen(value)) for key, value in known.items())))
    except FedpeftError as error:
        raise SystemExit(
            f"{run.folder}: neither this line nor one with the same data tells its task and its "
            f"number of examples, and they cannot be found here: {error}"
        ) from error


@functools.lru_cache
def _facts(settings: tuple[tuple[str, Any], ...]) -> Facts:
    nested = {**_nested(dict(settings)), "tuning": {"method": "head"}}
    resolved = resolve(Experiment.model_validate(nested))
    data = load_run_data(resolved)
    task = sketch_run(resolved.experiment, data.num_labels).tuned.loaded.task
    return Facts(task.name, len(data.clients), num_examples(data))


def _frozen(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


def _nested(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Turn dotted keys into tables, tuples into lists."""
    tables: dict[str, Any] = {}
    for key, value in settings.items():
        *path, last = key.split(".")
        table = tables
        for name in path:
            table = table.setdefault(name, {})
        table[last] = list(value) if isinstance(value, tuple) else value
    return tables


if __name__ == "__main__":
    main()
