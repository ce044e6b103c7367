"""Time and memory of a round against the number of clients and the size of the cohort.

    python -m bench.scale [--small] [--page]

Clients draw 20 digits each (`data.partition.scheme = "drawn"`) and train a toy ViT for one epoch,
one worker. Every point is a process of its own: the median of its rounds without evaluation, and
its peak resident memory. The result goes to docs/lab/benchmarks/scale.json and docs/lab/scale.md.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.machine import ROOT, child_environment, describe

__all__ = ["main", "run", "table"]

_FILE = ROOT / "docs" / "lab" / "benchmarks" / "scale.json"
_PAGE = ROOT / "docs" / "lab" / "scale.md"
_MARK = "<!-- measured: python -m bench.scale -->"


def run(small: bool) -> dict[str, Any]:
    """Measure a range of populations with one cohort, and of cohorts with one population."""
    if small:
        points = [(100, 4), (10_000, 4)]
    else:
        points = [(10**power, 500) for power in (3, 4, 5, 6)]
        points += [(10**6, cohort) for cohort in (100, 1000, 2000, 10_000)]
    found = [_measure(clients, cohort, rounds=3) for clients, cohort in points]
    return {"points": found, "machine": dict(describe()), "date": str(datetime.date.today())}


def table(result: Mapping[str, Any]) -> str:
    """Write the points as a table."""
    rows = [
        "| clients | cohort | CPU seconds a round | CPU milliseconds a turn | peak memory, MiB |",
        "| ---: | ---: | ---: | ---: | ---: |",
    ]
    for point in result["points"]:
        seconds = point["round_cpu_seconds"]
        rows.append(
            f"| {point['clients']:,} | {point['cohort']:,} | {seconds:.2f} "
            f"| {1e3 * seconds / point['cohort']:.2f} | {point['peak_bytes'] / 2**20:.0f} |"
        )
    machine = result["machine"]
    where = f"{machine['processor']}, one worker, one thread, {result['date']}"
    return "\n".join([*rows, "", f"*{where}.*"])


def _measure(clients: int, cohort: int, *, rounds: int) -> dict[str, Any]:
    """Run in a process of its own, and return what it says."""
    settings = {
        "model.name": "preset:tiny-vit",
        "data.partition.scheme": "drawn",
        "data.partition.clients": clients,
        "federation.clients_per_round": cohort,
        "federation.rounds": rounds,
        "federation.eval_every": rounds,
        "client.epochs": 1,
        "client.lr": 0.01,
        "engine.workers": 1,
        "engine.clients_per_pass": 1,
    }
    done = subprocess.run(
        [sys.executable, "-m", "bench.scale", "--point", json.dumps(settings)],
        env=child_environment(threads=1),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    return {"clients": clients, "cohort": cohort, **json.loads(done.stdout.splitlines()[-1])}


def _point(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Run an experiment in this process; time its rounds, checkpoints and records included."""
    from bench.assignment import experiment_of
    from fedpeft.launch.start import run as run_experiment

    marks: list[tuple[float, float]] = []
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        run_experiment(
            experiment_of(settings),
            out,
            on_round=lambda done: marks.append((time.perf_counter(), time.process_time())),
        )
        sizes = {file.name: file.stat().st_size for file in out.iterdir() if file.is_file()}
    steps = list(itertools.pairwise(marks))[: len(marks) - 2] or list(itertools.pairwise(marks))
    return {
        "round_seconds": statistics.median(b[0] - a[0] for a, b in steps),
        "round_cpu_seconds": statistics.median(b[1] - a[1] for a, b in steps),
        "whole_seconds": time.perf_counter() - began,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "files": sizes,
    }


def main(words: Sequence[str] | None = None) -> int:
    """Measure, keep the result, and write the page's table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--small", action="store_true", help="only show that it works")
    parser.add_argument("--point", help=argparse.SUPPRESS)
    parser.add_argument("--page", action="store_true", help="only write the table again")
    asked = parser.parse_args(words)
    if asked.point:
        print(json.dumps(_point(json.loads(asked.point))))
        return 0
    if asked.small:
        print(table(run(small=True)))
        return 0
    if not asked.page:
        _FILE.parent.mkdir(exist_ok=True)
        _FILE.write_text(json.dumps(run(small=False), indent=1) + "\n", "utf-8")
    before, _, rest = _PAGE.read_text("utf-8").partition(_MARK)
    after = rest.partition(_MARK)[2]
    found = table(json.loads(_FILE.read_text("utf-8")))
    _PAGE.write_text(f"{before}{_MARK}\n{found}\n{_MARK}{after}", "utf-8")
    print(found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
