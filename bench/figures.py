"""What a row says: figures, which are ratios against a target, and checks, which must hold.

figure   ratios of neighbouring measurements a_i / b_i, their smallest, middle and largest
check    a statement about the contestants' results, and whether it held
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

__all__ = ["Report", "check", "figure", "holds", "pairwise", "spread", "unavailable"]

Report: TypeAlias = dict[str, Any]


def figure(
    name: str,
    ratios: Sequence[float],
    *,
    target: float | None = None,
    at_most: bool = False,
    sides: Mapping[str, object] | None = None,
) -> Report:
    """Describe one figure of a row.

    Args:
      name: what is compared, in words.
      ratios: one a repetition; more is better unless `at_most`.
      target: what the middle ratio is held against; None for a figure that is only reported.
      at_most: the target is an upper bound.
      sides: what each side measured, such as its seconds; kept as it is.
    """
    return {
        "name": name,
        "ratios": [float(f"{ratio:.5g}") for ratio in ratios],
        **spread(ratios),
        "target": target,
        "at_most": at_most,
        "met": None if target is None else _meets(statistics.median(ratios), target, at_most),
        "sides": dict(sides or {}),
    }


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return the smallest, middle and largest value, to five digits."""
    found = {"min": min(values), "median": statistics.median(values), "max": max(values)}
    return {name: float(f"{value:.5g}") for name, value in found.items()}


def pairwise(slower: Sequence[float], faster: Sequence[float]) -> list[float]:
    """Divide neighbouring measurements: how many times the first took what the second took."""
    return [a / b for a, b in zip(slower, faster, strict=True)]


def check(name: str, ok: bool, detail: str) -> Report:
    """Describe a statement that must hold for the figures to mean anything."""
    return {"name": name, "ok": bool(ok), "detail": detail}


def unavailable(reason: str) -> Report:
    """Describe a row, or a contestant, that could not be measured here."""
    return {"available": False, "reason": reason, "figures": [], "checks": [], "notes": []}


def holds(report: Report) -> bool:
    """Whether all checks of a row held."""
    return all(found["ok"] for found in report.get("checks", []))


def _meets(value: float, target: float, at_most: bool) -> bool:
    return value <= target if at_most else value >= target
