"""From a row that returns plain numbers to figures and checks.

A table with a `ratio` (or `ratios`) is a figure, at any depth; a true or false that says
that results are the same is a check; all other numbers and words in it are shown beside the figure.

    {"ratio": 17.2, "target": 15.0, "same_result": True, "seconds_on": 120.0}
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bench.figures import Report, check, figure

__all__ = ["report_of"]

_CLAIMS = ("same", "equal", "agree", "holds")
_OWN = frozenset({"ratio", "ratios", "target", "at_most", "row", "name", "met", "notes"})


def report_of(title: str, found: Mapping[str, Any]) -> Report:
    """Return a report; one that has `figures` already is returned as it is.

    Args:
      title: what the row compares; names the figure of the outermost table.
      found: what the row's `run` returned.
    """
    if "figures" in found or found.get("available") is False:
        return {"figures": [], "checks": [], "notes": [], **found}
    figures, checks = _walk(title, found)
    return {"figures": figures, "checks": checks, "notes": list(found.get("notes", []))}


def _walk(name: str, found: Mapping[str, Any]) -> tuple[list[Report], list[Report]]:
    figures, checks = [], []
    if "ratio" in found or "ratios" in found:
        figures.append(_figure(name, found))
    for key, value in found.items():
        if isinstance(value, bool) and any(word in key for word in _CLAIMS):
            checks.append(check(f"{name}: {_words(key)}", value, _near(key, found)))
        elif isinstance(value, Mapping) and key not in _OWN:
            inner = _walk(str(value.get("name", f"{name}: {_words(key)}")), value)
            figures += inner[0]
            checks += inner[1]
    return figures, checks


def _figure(name: str, found: Mapping[str, Any]) -> Report:
    ratios = [float(ratio) for ratio in found.get("ratios", [found.get("ratio")])]
    shown = {
        key: value
        for key, value in found.items()
        if key not in _OWN and not isinstance(value, Mapping)
    }
    at_most = bool(found.get("at_most", False))
    sides = {"measured": shown}
    return figure(name, ratios, target=found.get("target"), at_most=at_most, sides=sides)


def _near(key: str, found: Mapping[str, Any]) -> str:
    """Return the accuracies and differences that stand beside a check."""
    kept = {k: v for k, v in found.items() if isinstance(v, float) and _tells(k)}
    return ", ".join(f"{_words(k)} {v:.4g}" for k, v in kept.items()) or _words(key)


def _tells(key: str) -> bool:
    return any(word in key for word in ("accuracy", "difference", "loss", "error"))


def _words(key: str) -> str:
    return key.replace("_", " ")
