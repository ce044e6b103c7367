"""Row 4: Apple's simulator `pfl` on the digits' work with LoRA, 20 rounds of 8 of 64 clients.

pfl runs in the best of its three ways, found by a trial of 5 rounds each: one process with one
thread, one process with all cores' threads, one process a core (torchrun). Ours is `fedpeft run`.
"""

from __future__ import annotations

import functools
from pathlib import Path

from bench.against_flower import digits_settings
from bench.assignment import write_work
from bench.children import ContestantError
from bench.environments import EnvironmentMissing, python_of
from bench.figures import Report, figure, pairwise, unavailable
from bench.machine import SCRATCH, cores, others
from bench.programs import Took, compare_results, run_ours, run_theirs, take_turns

__all__ = ["run"]


def run(small: bool) -> Report:
    """Measure start to finish, and the rounds apart."""
    try:
        python = python_of("pfl")
    except EnvironmentMissing as error:
        return unavailable(str(error))
    settings = digits_settings(small=small)
    folder = write_work(SCRATCH / "row4", settings)
    trial = write_work(SCRATCH / "row4-trial", {**settings, "federation.rounds": 1 if small else 5})
    ways = ["one thread"] if small else ["one thread", "all threads", "one process a core"]
    tried, failed = _try(python, trial, ways)
    best = min(tried, key=lambda way: tried[way].rounds)
    busy = [others()]
    theirs, ours = take_turns(
        functools.partial(_pfl, python, folder, best),
        lambda: run_ours(settings, "row4", timeout=300),
        1 if small else 3,
    )
    sides = {
        "pfl": {
            "way": best,
            "trial_seconds": {way: round(took.rounds, 2) for way, took in tried.items()},
            "failed": failed,
            "seconds": [round(took.seconds, 2) for took in theirs],
            "rounds_seconds": [round(took.rounds, 2) for took in theirs],
            "accuracy": [took.accuracy for took in theirs],
        },
        "fedpeft": {
            "seconds": [round(took.seconds, 2) for took in ours],
            "rounds_seconds": [round(took.rounds, 2) for took in ours],
            "accuracy": [took.accuracy for took in ours],
        },
    }
    whole = pairwise([took.seconds for took in theirs], [took.seconds for took in ours])
    rounds = pairwise([took.rounds for took in theirs], [took.rounds for took in ours])
    held = compare_results("same result as pfl", ours[-1], theirs[-1], folder, apart_at_most=0.01)
    figures = [
        figure("digits: start to finish", whole, target=2.0, sides=sides),
        figure("digits: rounds only", rounds),
    ]
    return {"figures": figures, "checks": [held], "notes": _NOTES, "busy": [*busy, others()]}


_NOTES = [
    "pfl 0.6.0 with the same torch, in an environment of its own: FederatedAveraging, PyTorchModel "
    "around the transformers model with peft layers, users weighted by data points.",
    "Same start, cohorts, batches (dictated to its sampler and data sets) and evaluations; pfl "
    "also scores the first cohort on its own examples, once.",
]


def _try(python: Path, folder: Path, ways: list[str]) -> tuple[dict[str, Took], dict[str, str]]:
    """Run pfl once in each way; a way that does not work is kept with its reason.

    Raises:
      ContestantError: if none works.
    """
    tried, failed = {}, {}
    for way in ways:
        try:
            tried[way] = _pfl(python, folder, way)
        except ContestantError as error:
            failed[way] = str(error)[-300:]
    if not tried:
        raise ContestantError(f"pfl did not run in any way: {failed}")
    return tried, failed


def _pfl(python: Path, folder: Path, way: str) -> Took:
    module = ["-m", "bench.contestants.pfl_app"]
    if way == "one process a core":
        module = ["-m", "torch.distributed.run", f"--nproc_per_node={cores()}", *module]
    command = [str(python), *module, str(folder), str(folder / "pfl.json")]
    threads = cores() if way == "all threads" else 1
    return run_theirs(command, "row4-pfl", timeout=400, threads=threads)
