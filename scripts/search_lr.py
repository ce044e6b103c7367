"""Search the learning rates of the digits: one grid and one budget for all methods.

    method x learning rate -> a run on seed 1 -> validation accuracy, mean of the last five rounds
                                              -> the best rate of each method

The validation split is scored, never the test split. A search that was stopped goes on from there.
Writes docs/lab/learning-rates.md and docs/lab/learning-rates.json.

    python scripts/search_lr.py --out runs/search-lr
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from fedpeft.experiment.read import DIGITS
from fedpeft.experiment.sweep_rows import SweepRow, read_rows
from fedpeft.launch.sweep import Failed, Finished, sweep
from fedpeft.runs.records import read_records

METHODS = ("scratch", "full", "head", "bias", "adapter", "prompt", "lora")
GRID = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1)
LAST = 5
DOCS = Path(__file__).resolve().parent.parent / "docs" / "lab"

Scores = dict[str, dict[float, float]]


def main() -> None:
    """Run the grid, pick, write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--out", type=Path, default=Path("runs/search-lr"))
    out = parser.parse_args().out
    rows = read_rows(
        DIGITS,
        ["data.evaluate_on=validation", "seed=1"],
        [f"tuning.method={_listed(METHODS)}", f"client.lr={_listed(GRID)}"],
    )
    scores = _scores(rows, sweep(rows, out, _say))
    DOCS.mkdir(exist_ok=True)
    (DOCS / "learning-rates.json").write_text(json.dumps(scores, indent=1) + "\n", "utf-8")
    (DOCS / "learning-rates.md").write_text(_page(scores), "utf-8")
    for method, rate in _best(scores).items():
        print(f"{method} = {rate}")


def _listed(values: Sequence[object]) -> str:
    return ",".join(json.dumps(value) for value in values)


def _say(row: SweepRow, event: object) -> None:
    if isinstance(event, Finished):
        print(f"{row.name}: {event.summary['accuracy']:.3f}", flush=True)


def _scores(rows: Sequence[SweepRow], ends: Mapping[str, Finished | Failed]) -> Scores:
    """Mean validation accuracy of the last rounds; 0 for a run that diverged."""
    scores: Scores = {method: {} for method in METHODS}
    for row in rows:
        experiment = row.experiment
        rate = experiment.client.lr
        assert isinstance(rate, float)
        scores[experiment.tuning.method][rate] = _last_rounds(ends[row.name])
    return scores


def _last_rounds(end: Finished | Failed) -> float:
    if not isinstance(end, Finished):
        return 0.0
    records = read_records(Path(str(end.summary["run_dir"])) / "rounds.jsonl")
    metrics = [record["metrics"] for record in records[-LAST:]]
    values = [float(m["accuracy"]) for m in metrics if isinstance(m, dict)]
    return float(round(sum(values) / len(values), 4))


def _best(scores: Scores) -> dict[str, float]:
    """The rate with the highest score; of equals, the smallest."""
    return {m: max(sorted(rates), key=lambda rate: rates[rate]) for m, rates in scores.items()}


def _page(scores: Scores) -> str:
    best = _best(scores)
    head = "| method | " + " | ".join(f"{rate:g}" for rate in GRID) + " |"
    lines = [head, "| --- |" + " ---: |" * len(GRID)]
    for method, rates in scores.items():
        mark = {rate: "**" if rate == best[method] else "" for rate in GRID}
        cells = (f"{mark[rate]}{rates[rate]:.3f}{mark[rate]}" for rate in GRID)
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    table = "\n".join(lines)
    return f"""# Learning rates of the digits

Validation accuracy (mean of the last {LAST} rounds, seed 1) of each tuning method at each client
learning rate, on the bundled digits and the bundled model; the highest of a row is used in
`src/fedpeft/digits.toml`. All methods have the same grid and the same budget: the rounds, local
epochs and clients of that file. The test split was not scored. A run in which every client
diverged counts as 0.

{table}

Repeat it with `python scripts/search_lr.py` (two cores: a quarter of an hour); the figures are in
`learning-rates.json` too. [Letters](quickstart.md) have other rates.
"""


if __name__ == "__main__":
    main()
