"""One line of text about a run's privacy, for the command line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["privacy_words"]


def privacy_words(figures: Mapping[str, Any]) -> str:
    """Say mode, epsilon and noise of a plan or a summary; `none` without privacy."""
    said = figures.get("privacy")
    if not said:
        return "none"
    epsilon = figures["epsilon"]
    spent = f"epsilon {epsilon:.4g} at delta {said['delta']:g}" if epsilon else "no guarantee"
    return f"{said['note']}: {spent}, noise deviation {said['noise_deviation']:.4g} a coordinate"
