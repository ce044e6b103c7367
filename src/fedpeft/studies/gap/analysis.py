"""The whole analysis of a domain gap: features, measures with all and with equally many examples.

Every measure is reported. Where expected distances are given, the result says which measures, if
any, give all of them within 5 %.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from fedpeft.pictures.style import Picture, write_picture
from fedpeft.runs.files import write_json
from fedpeft.studies.gap.features import GapRequest, read_features
from fedpeft.studies.gap.measures import MEASURES, Gap, balance, measure_gap
from fedpeft.studies.gap.picture import draw_gap, draw_runs
from fedpeft.studies.gap.runs import RunsRequest, read_run_features

__all__ = ["analyse_gap", "analyse_runs", "matching"]

Gaps: TypeAlias = Mapping[str, Gap]
"""`unbalanced` and `balanced`."""

_TOLERANCE = 0.05


def analyse_gap(
    request: GapRequest, reference: str, expected: Mapping[str, float], out: Path | None
) -> dict[str, Any]:
    """Compute features and distances; write `gap.json`, `gap.svg` and `gap.png`.

    Args:
      request: model and sets.
      reference: the set that distances are measured to.
      expected: set -> distance that some measure should give; may be empty.
      out: a folder, made if it is missing; None writes nothing.

    Returns:
      what `gap.json` holds.
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
    found = _figures(gaps, about, expected)
    return _written(found, out, lambda: draw_gap(gaps["unbalanced"], gaps["balanced"]))


def analyse_runs(
    request: RunsRequest, reference: str, expected: Mapping[str, float], out: Path | None
) -> dict[str, Any]:
    """The same for the features of several finished runs, with the run as the label.

    Every run sees the same examples, so that the balanced analysis is the unbalanced one.

    Args:
      request: the runs.
      reference: label of one of them.
      expected: label -> distance that some measure should give; may be empty.
      out: a folder, made if it is missing; None writes nothing.

    Returns:
      what `gap.json` holds.
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
    gaps = {"unbalanced": gap, "balanced": gap}
    found = _figures(gaps, about, expected)
    title = f"{features.model} on {features.source}"
    return _written(found, out, lambda: draw_runs(gap, features.methods, title))


def matching(gap: Gap, expected: Mapping[str, float]) -> list[str]:
    """Name the measures that give every expected distance within 5 %."""

    def fits(row: Mapping[str, float]) -> bool:
        return all(abs(row[n] - value) <= _TOLERANCE * abs(value) for n, value in expected.items())

    return [measure for measure, row in gap.distances.items() if fits(row)]


def _figures(
    gaps: Gaps, about: Mapping[str, object], expected: Mapping[str, float]
) -> dict[str, Any]:
    return {
        **about,
        "features": gaps["unbalanced"].num_features,
        "measures": dict(MEASURES),
        **{kind: gap.as_json() for kind, gap in gaps.items()},
        "expected": dict(expected),
        "within_5_percent": (
            {kind: matching(gap, expected) for kind, gap in gaps.items()} if expected else {}
        ),
    }


def _written(
    found: dict[str, Any], out: Path | None, draw: Callable[[], Picture]
) -> dict[str, Any]:
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        write_picture(draw(), out / "gap")
        write_json(out / "gap.json", found)
    return found
