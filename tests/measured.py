"""Results lines of runs that were never made, with accuracies that a test chooses."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedpeft.results.evidence import Evidence, Facts, condense
from fedpeft.results.lines import read_lines

BYTES = {"full": 3_260_984, "head": 52_784, "bias": 76_336, "adapter": 69_744}
BYTES |= {"prompt": 73_264, "lora": 77_392}
"""Encoded bytes of one message of a method."""


def line(
    method: str, final: float, *, seed: int = 1, rounds: int = 10, **changed: object
) -> dict[str, Any]:
    """Return the line of a run whose accuracy rises evenly to `final`.

    Args:
      method: the tuning method.
      final: accuracy after the last round.
      seed: of the run.
      rounds: their number.
      **changed: settings, with `__` for the dot.
    """
    size = BYTES[method]
    settings = {
        "name": "x",
        "seed": seed,
        "model.name": "vit-glyphs-28",
        "tuning.method": method,
        "data.source": "characters",
        "data.evaluate_on": "test",
        "data.partition.scheme": "dirichlet",
        "data.partition.clients": 64,
        "data.partition.alpha": 0.1,
        "federation.rounds": rounds,
        "federation.clients_per_round": 8,
        "client.epochs": 3,
        "client.lr": 0.02,
        "privacy.mode": "none",
    } | {key.replace("__", "."): value for key, value in changed.items()}
    columns = {
        "round": list(range(1, rounds + 1)),
        "cohort": [8] * rounds,
        "bytes_up": [8 * size] * rounds,
        "bytes_down": [8 * size] * rounds,
        "messages_up": [8] * rounds,
        "messages_down": [8] * rounds,
        "metric": [final * at / rounds for at in range(1, rounds + 1)],
    }
    summary = {
        "metric": "accuracy",
        "accuracy": final,
        "rounds": rounds,
        "trainable_parameters": size // 4,
        "total_parameters": 815_206,
        "epsilon": None if settings["privacy.mode"] == "none" else 5.0,
    }
    digest = json.dumps([settings[key] for key in sorted(settings)], default=str)
    return {
        "experiment": digest,
        "settings": settings,
        "rounds": columns,
        "summary": summary,
        "environment": {},
    }


def lines(
    finals: Mapping[str, float], *, seeds: int = 3, spread: float = 0.001, **changed: object
) -> list[dict[str, Any]]:
    """Return lines of several methods and seeds; seed s adds s times `spread` to every method."""
    return [
        line(method, final + spread * seed, seed=seed, **changed)  # type: ignore[arg-type]
        for method, final in finals.items()
        for seed in range(1, seeds + 1)
    ]


def write(file: Path, found: list[dict[str, Any]]) -> Path:
    """Write a results file."""
    file.write_text("".join(json.dumps(each) + "\n" for each in found), "utf-8")
    return file


def evidence(folder: Path, found: list[dict[str, Any]]) -> Evidence:
    """Return the evidence in some lines, of 64 clients with 2,244 pictures."""
    file = write(folder / "lines.jsonl", found)
    facts = Facts("image-classification", 64, 2244)
    return condense(list(read_lines(file).values()), lambda run: facts)
