"""Whole programs against each other: ours from the command line, another system from its own.

for each repetition:  theirs, ours        start to finish, and the rounds apart
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.assignment import distance
from bench.children import run_program
from bench.figures import Report, check
from bench.machine import SCRATCH, child_environment
from fedpeft.experiment.read import DIGITS

__all__ = ["Took", "compare_results", "run_ours", "run_theirs", "take_turns"]


@dataclass(frozen=True)
class Took:
    """What a program took and found.

    Attributes:
      seconds: from the start of its process to its end.
      rounds: seconds in rounds, evaluation included.
      round_seconds: of each round.
      accuracy: after the last round.
      delta: file of the final delta, by module path; None where it was not kept.
    """

    seconds: float
    rounds: float
    round_seconds: tuple[float, ...]
    accuracy: float
    delta: Path | None


def run_ours(settings: Mapping[str, Any], name: str, *, timeout: float) -> Took:
    """Run the bundled experiment on digits, with settings, in a fresh process.

    It has as many workers as there are cores.
    """
    out = SCRATCH / f"{name}-ours"
    shutil.rmtree(out, ignore_errors=True)
    words = [f"{key}={_toml(value)}" for key, value in settings.items()]
    sets = [part for word in words for part in ("--set", word)]
    whole = [str(DIGITS), *sets, "--out", str(out), "--json"]
    command = [sys.executable, "-m", "fedpeft", "run", *whole]
    environment = child_environment(threads=1)
    ended = run_program(command, environment, timeout=timeout, log=SCRATCH / f"{name}-ours.log")
    summary = json.loads(ended.output)
    lines = (out / "rounds.jsonl").read_text("utf-8").splitlines()
    seconds = tuple(float(json.loads(line)["seconds"]) for line in lines)
    return Took(
        ended.seconds, sum(seconds), seconds, float(summary["accuracy"]), out / "delta.safetensors"
    )


def run_theirs(
    command: Sequence[str], name: str, *, timeout: float, threads: int | None, **more: str
) -> Took:
    """Run a contestant's program; its last argument names the file it writes its result to."""
    environment = child_environment(threads=threads, **more)
    out = Path(command[-1])
    out.unlink(missing_ok=True)
    ended = run_program(command, environment, timeout=timeout, log=SCRATCH / f"{name}.log")
    found = json.loads(out.read_text("utf-8"))
    return Took(
        ended.seconds,
        float(found["rounds"]),
        tuple(found["round_seconds"]),
        float(found["accuracy"]),
        out.with_suffix(".safetensors"),
    )


def take_turns(
    theirs: Callable[[], Took], ours: Callable[[], Took], repeats: int
) -> tuple[list[Took], list[Took]]:
    """Run both in turns."""
    pairs = [(theirs(), ours()) for _ in range(repeats)]
    return [pair[0] for pair in pairs], [pair[1] for pair in pairs]


def compare_results(
    name: str, ours: Took, theirs: Took, folder: Path, *, apart_at_most: float
) -> Report:
    """Check that two programs did the same work: accuracy, and the final delta.

    Args:
      name: of the check.
      ours: its delta is named as on the wire.
      theirs: its delta is named by module path.
      folder: of the work, whose names.json leads from one to the other.
      apart_at_most: bound of ‖ours - theirs‖ / ‖ours‖.
    """
    assert ours.delta is not None and theirs.delta is not None
    apart = distance(_by_path(ours.delta, folder), theirs.delta)
    ok = abs(ours.accuracy - theirs.accuracy) <= 0.01 and apart <= apart_at_most
    detail = (
        f"accuracy {ours.accuracy:.4f} and {theirs.accuracy:.4f} (within 0.01), "
        f"delta {apart:.1e} apart (within {apart_at_most:g})"
    )
    return check(name, ok, detail)


def _by_path(file: Path, folder: Path) -> Path:
    """Write a delta of ours under its modules' paths."""
    from safetensors.torch import load_file, save_file

    paths = json.loads((folder / "names.json").read_text("utf-8"))
    out = folder / "ours.safetensors"
    save_file({paths[name]: value for name, value in load_file(file).items()}, out)
    return out


def _toml(value: object) -> str:
    return json.dumps(value) if isinstance(value, bool | int | float) else str(value)
