"""Row 3: Flower's simulation with the ordinary Hugging Face `peft` client of its users.

Two jobs: the bundled experiment on digits with LoRA, 20 rounds of 8 of 64 clients; MiniLM with
LoRA, 3 rounds of 8 of 24 clients of 32 texts, one epoch. Ours is `fedpeft run` from the command
line, start-up included.
"""

from __future__ import annotations

import csv
import functools
import json
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.assignment import write_work
from bench.children import ContestantError
from bench.environments import EnvironmentMissing, python_with_flower
from bench.figures import Report, figure, pairwise, unavailable
from bench.machine import SCRATCH, cores, others
from bench.programs import Took, compare_results, run_ours, run_theirs, take_turns
from fedpeft.data.tables import Table

__all__ = ["digits_settings", "minilm_settings", "run"]


def digits_settings(*, small: bool) -> dict[str, Any]:
    """Return the bundled experiment on digits with LoRA; small: two rounds."""
    return {"tuning.method": "lora", **({"federation.rounds": 2} if small else {})}


def minilm_settings(folder: Path, *, small: bool) -> dict[str, Any]:
    """Return the job on texts, after writing its data: 24 clients of 32 docstrings, 128 to test."""
    _write_texts(folder, clients=24, each=32, test=128)
    return {
        "model.name": "minilm",
        "tuning.method": "lora",
        "data.source": str(folder),
        "data.max_length": 64,
        "data.partition.scheme": "natural",
        "federation.rounds": 1 if small else 3,
        "federation.clients_per_round": 8,
        "federation.eval_every": 3,
        "client.epochs": 1,
        "client.batch_size": 16,
        "client.optimizer": "adamw",
        "client.lr": 0.005,
    }


def run(small: bool) -> Report:
    """Measure both jobs."""
    try:
        python = python_with_flower()
    except EnvironmentMissing as error:
        return unavailable(str(error))
    figures, checks, busy = [], [], [others()]
    jobs: list[tuple[str, Mapping[str, Any], float, int]] = [
        ("digits", digits_settings(small=small), 5.0, 3)
    ]
    if not small:
        texts = SCRATCH / "row3-texts"
        jobs.append(("minilm", minilm_settings(texts, small=small), 1.3, 3))
    for name, settings, target, repeats in jobs:
        folder = _write(name, settings)
        theirs, ours = take_turns(
            functools.partial(_flower, python, name, folder),
            functools.partial(run_ours, settings, f"row3-{name}", timeout=300),
            1 if small else repeats,
        )
        figures += _figures(name, theirs, ours, target)
        label = f"{name}: same result as Flower"
        checks.append(compare_results(label, ours[-1], theirs[-1], folder, apart_at_most=0.01))
        busy.append(others())
    if not small:
        figures.append(_kept(python, figures[0]))
    return {"figures": figures, "checks": checks, "notes": _NOTES, "busy": busy}


_NOTES = [
    "Flower's client loads model and adapter anew for every message, as Flower's own examples of "
    "Hugging Face fine-tuning do. `kept model`: the same client, its model held by the process.",
    "Same start, cohorts, batches and evaluation of the whole test set; the cohort is dictated to "
    "FedAvg. One core a client, two at a time; Ray without its dashboard.",
    "Rounds: ours by its records, Flower's by the clock of its server app after all nodes are "
    "there, Ray's start of its workers included in round 1. `later rounds` leaves round 1 out.",
]


def _write(name: str, settings: Mapping[str, Any]) -> Path:
    folder = write_work(SCRATCH / f"row3-{name}", settings)
    plan = json.loads((folder / "work.json").read_text("utf-8"))
    (folder / "work.json").write_text(json.dumps({**plan, "cores": cores()}), "utf-8")
    return folder


def _flower(python: Path, name: str, folder: Path, *options: str) -> Took:
    out = str(folder / "flower.json")
    command = [str(python), "-m", "bench.contestants.flower_app", str(folder), *options, out]
    return run_theirs(command, f"row3-{name}-flower", timeout=400, threads=None)


def _figures(name: str, theirs: list[Took], ours: list[Took], target: float) -> list[Report]:
    sides = {"flower": _side(theirs), "fedpeft": _side(ours)}
    whole = pairwise([t.seconds for t in theirs], [o.seconds for o in ours])
    rounds = pairwise([t.rounds for t in theirs], [o.rounds for o in ours])
    later = pairwise([_later(t) for t in theirs], [_later(o) for o in ours])
    return [
        figure(f"{name}: start to finish", whole, target=target, sides=sides),
        figure(f"{name}: rounds only", rounds),
        figure(f"{name}: later rounds", later),
    ]


def _kept(python: Path, whole: Report) -> Report:
    """The same with a client whose process keeps its model: not what the examples do."""
    ours = statistics.median(whole["sides"]["fedpeft"]["seconds"])
    theirs = _flower(python, "digits", SCRATCH / "row3-digits", "--keep")
    sides = {"flower": _side([theirs])}
    return figure("digits, kept model: start to finish", [theirs.seconds / ours], sides=sides)


def _side(runs: list[Took]) -> dict[str, object]:
    return {
        "seconds": [round(run.seconds, 2) for run in runs],
        "rounds_seconds": [round(run.rounds, 2) for run in runs],
        "accuracy": [round(run.accuracy, 4) for run in runs],
    }


def _later(took: Took) -> float:
    return sum(took.round_seconds[1:]) or took.rounds


def _write_texts(folder: Path, *, clients: int, each: int, test: int) -> None:
    """Write long docstrings of installed packages as train.csv and test.csv."""
    from fedpeft.data.docstrings import read_docstrings

    tables = read_docstrings(("numpy", "scipy", "torch", "sklearn")).tables
    folder.mkdir(parents=True, exist_ok=True)
    for split, wanted in (("train", clients * each), ("test", test)):
        rows = _longest(tables[split], wanted)
        with (folder / f"{split}.csv").open("w", encoding="utf-8", newline="") as opened:
            writer = csv.writer(opened)
            writer.writerow(["text", "label", "client"])
            for number, (text, label) in enumerate(rows):
                writer.writerow([text, label, f"client-{number % clients:02d}"])


def _longest(table: Table, wanted: int) -> list[tuple[str, str]]:
    columns = table.columns
    texts = [(str(t), str(n)) for t, n in zip(columns["text"], columns["label"], strict=True)]
    kept = sorted(texts, key=lambda pair: (-len(pair[0]), pair[0]))[:wanted]
    if len(kept) < wanted:
        raise ContestantError(f"found {len(kept)} docstrings of installed packages, need {wanted}")
    return sorted(kept)
