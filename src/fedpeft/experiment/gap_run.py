"""The whole analysis of a domain gap: features, measures with all and with equally many examples.

Every measure is reported. Where expected distances are given, the result says which measures, if
any, give all of them within 5 %.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedpeft.experiment.files import write_json
from fedpeft.experiment.gap import MEASURES, Gap, balance, measure_gap
from fedpeft.experiment.gap_features import GapRequest, read_features

__all__ = ["analyse_gap", "matching"]

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
    features = read_features(request)
    gaps = {
        "unbalanced": measure_gap(features, reference),
        "balanced": measure_gap(balance(features, seed=request.seed), reference),
    }
    found: dict[str, Any] = {
        "model": request.model,
        "reference": reference,
        "sources": dict(request.sources),
        "split": request.split,
        "normalize": request.normalize,
        "seed": request.seed,
        "features": int(next(iter(features.values())).shape[1]),
        "measures": dict(MEASURES),
        **{kind: gap.as_json() for kind, gap in gaps.items()},
        "expected": dict(expected),
        "within_5_percent": (
            {kind: matching(gap, expected) for kind, gap in gaps.items()} if expected else {}
        ),
    }
    if out is not None:
        from fedpeft.experiment.report_gap import draw_gap

        out.mkdir(parents=True, exist_ok=True)
        picture = draw_gap(gaps["unbalanced"], gaps["balanced"])
        (out / "gap.svg").write_text(picture.svg, "utf-8")
        (out / "gap.png").write_bytes(picture.png)
        write_json(out / "gap.json", found)
    return found


def matching(gap: Gap, expected: Mapping[str, float]) -> list[str]:
    """Name the measures that give every expected distance within 5 %."""

    def fits(row: Mapping[str, float]) -> bool:
        return all(abs(row[n] - value) <= _TOLERANCE * abs(value) for n, value in expected.items())

    return [measure for measure, row in gap.distances.items() if fits(row)]
