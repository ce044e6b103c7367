"""Row 2: many small clients. Ours on all cores, K clients a pass, against a bare loop.

loop   one client after the other: Hugging Face model, peft layers, torch.optim, 1 or 2 threads
ours   the same rounds: same clients, batches, start; whole rounds with messages and combining
fused  all samples of K clients as one batch with a single delta: the bound for K at a time
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.assignment import distance, write_work
from bench.children import Session
from bench.figures import Report, check, figure, pairwise
from bench.machine import SCRATCH, cores, others

__all__ = ["Cell", "run", "settings_of"]

METHODS = ("lora", "bias", "adapter")
CANDIDATES = (1, 2, 4, 8, 16)
"""Clients in one pass that are tried before the best is measured."""


@dataclass(frozen=True)
class Cell:
    """One combination.

    Attributes:
      method: of tuning.
      batch: examples of a local batch.
      examples: of each client.
      epochs: over them, in a turn.
    """

    method: str
    batch: int
    examples: int
    epochs: int


CELLS = [
    Cell(method, batch, examples, epochs)
    for method in METHODS
    for batch, examples, epochs in ((1, 8, 1), (4, 8, 2), (16, 16, 2))
]


def settings_of(cell: Cell, rounds: int, *, cohort: int = 16, **engine: int) -> dict[str, Any]:
    """Return the experiment of a cell; its clients are equal."""
    return {
        "tuning.method": cell.method,
        "data.partition.scheme": "iid",
        "data.partition.clients": 64,
        "data.budget": 64 * cell.examples,
        "federation.rounds": rounds,
        "federation.clients_per_round": cohort,
        "client.epochs": cell.epochs,
        "client.batch_size": cell.batch,
        "client.lr": 0.02,
        **{f"engine.{key}": value for key, value in engine.items()},
    }


def run(small: bool) -> Report:
    """Measure all cells, then K at a time against the fused batch."""
    cells = [Cell("lora", 4, 4, 1)] if small else CELLS
    figures, checks, busy = [], [], [others()]
    with Session("bench.contestants.loop", threads=cores(), log=SCRATCH / "loop.log") as loop:
        with Session("bench.contestants.ours", threads=1, log=SCRATCH / "ours.log") as ours:
            for cell in cells:
                found, held = _against_loop(cell, loop, ours, small=small)
                figures.append(found)
                checks += held
                busy.append(others())
            for method in ("lora",) if small else METHODS:
                found, held = _against_fused(method, loop, ours, small=small)
                figures.append(found)
                checks += held
                busy.append(others())
    notes = [
        "A measurement is one whole round of 16 clients; ours includes messages and combining. "
        "Clients hold 8 images (16 at local batch 16); 1, 2 and 2 epochs at batch 1, 4 and 16.",
        "`clients_per_pass` and the loop's thread count are each the best of a short trial.",
        "Fused: one optimiser and one delta see the K clients' batches as one batch; it computes "
        "another result, so only its loss is checked.",
    ]
    return {"figures": figures, "checks": checks, "notes": notes, "busy": busy}


def _against_loop(
    cell: Cell, loop: Session, ours: Session, *, small: bool
) -> tuple[Report, list[Report]]:
    rounds = 2 if small else 7
    cohort = 4 if small else 16
    settings = settings_of(cell, rounds, cohort=cohort)
    folder = _fresh(SCRATCH / f"row2-{cell.method}-{cell.batch}")
    write_work(folder, settings)
    threads = _best_threads(loop, folder, small=small)
    workers = min(cores(), cohort)
    settings["engine.workers"] = workers
    chosen, tried = _best_pass(ours, settings, _candidates(cohort, workers, small=small))
    ours.call("open", settings=chosen)
    loop.call("open", folder=str(folder))
    loop.call("round", number=1, threads=threads)
    ours.call("round")
    slow, fast = [], []
    for number in range(2, rounds + 1):
        slow.append(float(loop.call("round", number=number, threads=threads)))
        fast.append(float(ours.call("round")))
    name = f"{cell.method}, local batch {cell.batch}"
    sides = {
        "loop": {"threads": threads, "round_seconds": slow},
        "fedpeft": {"workers": workers, "tried": tried, "round_seconds": fast}
        | {"clients_per_pass": chosen.get("engine.clients_per_pass", 1)},
    }
    found = figure(f"{name}: all cores, best K", pairwise(slow, fast), target=3.0, sides=sides)
    return found, [_same_result(name, loop, ours, folder)]


def _against_fused(
    method: str, loop: Session, ours: Session, *, small: bool
) -> tuple[Report, list[Report]]:
    cell = Cell(method, 8, 16, 1 if small else 2)
    cohort, rounds = (4, 2) if small else (16, 7)
    settings = settings_of(cell, rounds, cohort=cohort, workers=1)
    folder = _fresh(SCRATCH / f"row2-{method}-fused")
    write_work(folder, settings)
    chosen, tried = _best_pass(ours, settings, (2,) if small else (8, 16))
    group = int(chosen.get("engine.clients_per_pass", 1))
    ours.call("open", settings=chosen)
    loop.call("open", folder=str(folder))
    loop.call("fused", number=1, group=group, threads=1)
    ours.call("round")
    bound, fast, last = [], [], {"first_loss": 0.0, "last_loss": 0.0}
    for number in range(2, rounds + 1):
        last = loop.call("fused", number=number, group=group, threads=1)
        bound.append(float(last["seconds"]))
        fast.append(float(ours.call("round")))
    sides = {
        "fused": {"threads": 1, "batch": group * cell.batch, "round_seconds": bound},
        "fedpeft": {"workers": 1, "clients_per_pass": group, "tried": tried}
        | {"round_seconds": fast},
    }
    name = f"{method}, local batch 8: K at a time against one fused batch, one thread"
    learns = last["last_loss"] < last["first_loss"]
    detail = f"fused loss {last['first_loss']:.3f} to {last['last_loss']:.3f}"
    found = figure(name, pairwise(bound, fast), target=0.85, sides=sides)
    return found, [check(f"{method}: the fused batch learns", learns, detail)]


def _candidates(cohort: int, workers: int, *, small: bool) -> Sequence[int]:
    """Passes that leave every core some clients."""
    most = max(1, cohort // workers)
    return [1, 2] if small else [k for k in CANDIDATES if k <= most]


def _best_threads(loop: Session, folder: Path, *, small: bool) -> int:
    """Return the loop's faster thread count, tried on the first round."""
    loop.call("open", folder=str(folder))
    seconds = {}
    for threads in (1,) if small else dict.fromkeys((1, 2, cores())):
        loop.call("round", number=1, threads=threads)
        seconds[threads] = float(loop.call("round", number=1, threads=threads))
    return min(seconds, key=lambda threads: seconds[threads])


def _best_pass(
    ours: Session, settings: dict[str, Any], candidates: Sequence[int]
) -> tuple[dict[str, Any], dict[str, float]]:
    """Return the settings with the fastest number of clients a pass, and what each took."""
    tried: dict[int, float] = {}
    for number in candidates:
        wanted = {**settings, "engine.clients_per_pass": number}
        ours.call("open", settings=wanted)
        ours.call("round")
        tried[number] = min(float(ours.call("round")) for _ in range(1 if len(tried) > 4 else 2))
    best = min(tried, key=lambda number: tried[number])
    words = {str(number): round(seconds, 4) for number, seconds in tried.items()}
    return {**settings, "engine.clients_per_pass": best}, words


def _same_result(name: str, loop: Session, ours: Session, folder: Path) -> Report:
    """Both ran the same rounds from the same start: compare accuracy and delta."""
    theirs = float(loop.call("finish", out=str(folder / "loop.safetensors")))
    own = float(ours.call("finish", out=str(folder / "ours.safetensors")))
    apart = distance(folder / "ours.safetensors", folder / "loop.safetensors")
    ok = abs(own - theirs) <= 0.01 and apart <= 1e-2
    detail = f"accuracy {own:.4f} and {theirs:.4f} (within 0.01), delta {apart:.1e} apart"
    return check(f"{name}: same result", ok, detail + " (within 1e-2)")


def _fresh(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    return folder
