"""The sentences of a report: the best row and its lead, the claims, what an epsilon is worth."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from fedpeft.core.metrics import Metric
from fedpeft.results.claims import ABSENT, Verdict, by_bed
from fedpeft.results.paired import Comparison
from fedpeft.results.runs import Panel
from fedpeft.results.table import metric_text, row_of


def leader(panel: Panel, name: str) -> str:
    """Return which row has the best mean, and its lead over paired seeds; "" for one row.

    Args:
      panel: the rows.
      name: name of their grid.
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
    lead = f"; {_lead(Comparison('', tuple(margins)), metric)}" if len(margins) > 1 else ""
    return (
        f"{name}: {'highest' if metric.better == 'max' else 'lowest'} mean {metric.name} of "
        f"{len(done)} rows: {first.label}, {metric_text(best, metric)}; next: "
        f"{second.label}, {metric_text(next_best, metric)}{lead}."
    )


def _lead(found: Comparison, metric: Metric) -> str:
    scale, unit = metric.scale, " points" if metric.percent else ""
    verdict = (
        "not distinguished by these seeds (one-sided t test, 0.05)"
        if found.verdict == "undecided"
        else "more than chance between seeds (one-sided t test, 0.05)"
    )
    return (
        f"a lead of {scale * found.margin:.2f}{unit} with standard error "
        f"{scale * found.error:.2f}, {verdict}"
    )


def claims_words(verdicts: Sequence[Verdict]) -> str:
    """Return a sentence for each bed with the number of each verdict; "" where none is checked."""
    beds = by_bed(verdicts)
    told = {bed: _counted(found) for bed, found in beds.items()}
    return " ".join(
        f"{bed}: {text}" if len(beds) > 1 else text for bed, text in told.items() if text
    )


def _counted(verdicts: Sequence[Verdict]) -> str:
    counts = Counter(verdict.verdict for verdict in verdicts)
    if counts[ABSENT] == len(verdicts):
        return ""
    absent = f", {counts[ABSENT]} need rows that are not here" if counts[ABSENT] else ""
    return (
        f"{counts['pass'] + counts['equivalent']} of the paper's {len(verdicts)} claims pass, "
        f"{counts['fail']} fail, "
        f"{counts['undecided']} are undecided{absent}."
    )


def worth(note: str) -> str:
    """Return what epsilon is worth under a privacy note, starting with a colon."""
    if note.endswith("guarantees nothing"):
        return ": shown for comparison only, with no ε"
    if note.startswith("simulation"):
        return ": the noise follows from the seed; the ε shown is what secret noise would give"
    if note.startswith("no noise"):
        return ": clipped, and nothing else"
    return ": ε holds for the whole run, with noise from the operating system's random source"


def listed(names: Sequence[str], most: int = 8) -> str:
    """Return the first few names, and the number of the others."""
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
