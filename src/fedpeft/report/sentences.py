"""Sentences that a report works out: who leads and how surely, what the rows' privacy is worth."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from fedpeft.core.metrics import Metric
from fedpeft.results.claims import ABSENT, Comparison, Verdict, compare
from fedpeft.results.runs import Panel
from fedpeft.results.table import metric_text, row_of

__all__ = ["claims_words", "leader", "listed", "worth"]


def leader(panel: Panel, name: str) -> str:
    """Say which row has the best mean, and how far it leads over paired seeds; "" for one row.

    Args:
      panel: the rows.
      name: of their grid.
    """
    metric = panel.metric
    known = [(last, g) for g in panel.groups if g.is_finished and (last := row_of(g).last)]
    done = sorted(known, key=lambda pair: metric.sign * pair[0].mean, reverse=True)
    if len(done) < 2:
        return ""
    (best, first), (next_best, second) = done[:2]
    one, two = ({run.seed: run.last for run in g.counted} for g in (first, second))
    margins = [
        metric.sign * (a - b)
        for seed, a in sorted(one.items())
        if a is not None and (b := two.get(seed)) is not None
    ]
    sure = f"; {_sure(compare('', margins), metric)}" if len(margins) > 1 else ""
    return (
        f"{name}: {'highest' if metric.better == 'max' else 'lowest'} mean {metric.name} of "
        f"{len(done)} rows has {first.label}, {metric_text(best, metric)}; next is "
        f"{second.label}, {metric_text(next_best, metric)}{sure}."
    )


def _sure(found: Comparison, metric: Metric) -> str:
    scale, unit = metric.scale, " points" if metric.percent else ""
    verdict = (
        "not told apart by these seeds (under two standard errors)"
        if found.verdict == "undecided"
        else "more than two standard errors apart"
    )
    return (
        f"a lead of {scale * found.margin:.2f}{unit} with standard error "
        f"{scale * found.error:.2f}, {verdict}"
    )


def claims_words(verdicts: Sequence[Verdict]) -> str:
    """Count the verdicts in one sentence; "" where no claim can be checked."""
    counts = Counter(verdict.verdict for verdict in verdicts)
    if counts[ABSENT] == len(verdicts):
        return ""
    absent = f", {counts[ABSENT]} need rows that are not here" if counts[ABSENT] else ""
    return (
        f"{counts['pass']} of the paper's {len(verdicts)} claims pass, {counts['fail']} fail, "
        f"{counts['undecided']} are undecided{absent}."
    )


def worth(note: str) -> str:
    """Say what epsilon is worth under a note on privacy, after a colon."""
    if note.endswith("guarantees nothing"):
        return ": shown for comparison only, with no ε"
    if note.startswith("simulation"):
        return ": the noise follows from the seed; the ε shown is what secret noise would give"
    if note.startswith("no noise"):
        return ": clipped, and nothing else"
    return ": ε holds for the whole run, with noise from a secret of the operating system"


def listed(names: Sequence[str], most: int = 8) -> str:
    """Name the first few, and count the others."""
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
