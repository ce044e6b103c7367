"""The analysis of a domain gap: features, and measures with all and with equally many examples.

Every measure is reported. If expected distances are given, the result names the measures, if any,
that match all of them within 5 %.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

from fedpeft.pictures.style import Picture, write_picture
from fedpeft.runs.files import write_json
from fedpeft.studies.gap.features import (
    GapRequest,
    RunsRequest,
    read_features,
    read_run_features,
)
from fedpeft.studies.gap.measures import MEASURES, Gap, balance, measure_gap
from fedpeft.studies.gap.picture import draw_gap, draw_runs

Gaps: TypeAlias = Mapping[str, Gap]
"""`unbalanced` and `balanced`."""

_TOLERANCE = 0.05


def analyse_gap(
    request: GapRequest, reference: str, expected: Mapping[str, float], out: Path | None
) -> dict[str, Any]:
    """Compute features and distances; write `gap.json`, `gap.svg` and `gap.png`.

    Args:
      request: model and data sets.
      reference: the set to which distances are measured.
      expected: set -> expected distance; may be empty.
      out: a folder, made if it is missing; None writes nothing.

    Returns:
      The content of `gap.json`.
    """
    about = {
        "model": request.model,
        "reference": reference,
        "sources": dict(request.sources),
        "split": request.split,
        "normalize": request.normalize,
        "seed": request.seed,
    }
    features = read_features(request)
    gaps = {
        "unbalanced": measure_gap(features, reference),
        "balanced": measure_gap(balance(features, seed=request.seed), reference),
    }
    draw = partial(draw_gap, gaps["unbalanced"], gaps["balanced"])
    return _report(gaps, about, expected, (out, draw))


def analyse_runs(
    request: RunsRequest, reference: str, expected: Mapping[str, float], out: Path | None
) -> dict[str, Any]:
    """Analyse the features of several finished runs, with the run as the label.

    Every run gets the same examples, so the balanced analysis equals the unbalanced one.

    Args:
      request: the runs.
      reference: label of one of the runs.
      expected: label -> expected distance; may be empty.
      out: a folder, made if it is missing; None writes nothing.

    Returns:
      The content of `gap.json`.
    """
    features = read_run_features(request)
    about = {
        "model": features.model,
        "reference": reference,
        "runs": {label: str(folder) for label, folder in request.runs.items()},
        "methods": dict(features.methods),
        "source": features.source,
        "split": request.split,
        "seed": request.seed,
    }
    gap = measure_gap(features.rows, reference, paired=True)
    draw = partial(draw_runs, gap, features.methods, f"{features.model} on {features.source}")
    return _report({"unbalanced": gap, "balanced": gap}, about, expected, (out, draw))


def matching(gap: Gap, expected: Mapping[str, float]) -> list[str]:
    """Return the names of the measures that match every expected distance within 5 %."""

    def fits(row: Mapping[str, float]) -> bool:
        return all(abs(row[n] - value) <= _TOLERANCE * abs(value) for n, value in expected.items())

    return [measure for measure, row in gap.distances.items() if fits(row)]


def _report(
    gaps: Gaps,
    about: Mapping[str, object],
    expected: Mapping[str, float],
    files: tuple[Path | None, Callable[[], Picture]],
) -> dict[str, Any]:
    """Return the content of `gap.json`; write it and the picture if there is a folder."""
    found = {
        **about,
        "features": gaps["unbalanced"].num_features,
        "measures": dict(MEASURES),
        **{kind: gap.as_json() for kind, gap in gaps.items()},
        "expected": dict(expected),
        "within_5_percent": {
            kind: matching(gap, expected) for kind, gap in gaps.items() if expected
        },
    }
    out, draw = files
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        write_picture(draw(), out / "gap")
        write_json(out / "gap.json", found)
    return found
