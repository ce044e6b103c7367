"""Sentences that a report works out: who leads and how surely, what the rows' privacy is worth."""

from __future__ import annotations

import html

from fedpeft.core.metrics import Metric
from fedpeft.results.claims import Comparison, compare
from fedpeft.results.runs import Group, Panel
from fedpeft.results.table import metric_text, row_of

__all__ = ["leader", "privacy_paragraph"]


def leader(panel: Panel, name: str) -> str:
    """Say which row has the best mean, and how far it leads over paired seeds; "" for one row.

    Args:
      panel: the rows.
      name: of their grid.
    """
    metric = panel.metric
    known = [(row.last.mean, group) for group in panel.groups if (row := row_of(group)).last]
    done = sorted(
        ((mean, group) for mean, group in known if group.is_finished),
        key=lambda pair: metric.sign * pair[0],
        reverse=True,
    )
    if len(done) < 2:
        return ""
    first, second = done[0][1], done[1][1]
    scores = [f"{group.label}, {metric_text(row_of(group).last, metric)}" for _, group in done]
    found = _lead(first, second, metric.sign)
    sure = "" if found is None else f"; {_sure(found, metric)}"
    return (
        f"{name}: {'highest' if metric.better == 'max' else 'lowest'} mean {metric.name} of "
        f"{len(done)} rows has {scores[0]}; next is {scores[1]}{sure}."
    )


def _lead(first: Group, second: Group, sign: int) -> Comparison | None:
    """Compare two rows over the seeds that both have finished; None with fewer than two."""
    one, two = _by_seed(first), _by_seed(second)
    margins = [sign * (one[seed] - two[seed]) for seed in sorted(set(one) & set(two))]
    return compare("", margins) if len(margins) > 1 else None


def _by_seed(group: Group) -> dict[int, float]:
    return {
        int(run.settings.get("seed", 0)): curve[-1][2]
        for run in group.counted
        if (curve := run.curve())
    }


def _sure(found: Comparison, metric: Metric) -> str:
    factor, unit = metric.scale, " points" if metric.percent else ""
    verdict = {"undecided": "not told apart by these seeds (under two standard errors)"}
    said = verdict.get(found.verdict, "more than two standard errors apart")
    return (
        f"a lead of {factor * found.margin:.2f}{unit} with standard error "
        f"{factor * found.error:.2f}, {said}"
    )


def privacy_paragraph(panel: Panel) -> str:
    """Say as HTML what epsilon is worth in a panel; "" where privacy is not its matter."""
    notes = list(dict.fromkeys(g.privacy_note for g in panel.groups if g.privacy_note))
    if not notes:
        return ""
    said = "".join(f"<li><b>{html.escape(note)}</b>{_worth(note)}</li>" for note in notes)
    return f'<div class="note"><p>What the rows with privacy promise:</p><ul>{said}</ul></div>'


def _worth(note: str) -> str:
    if note.endswith("guarantees nothing"):
        return ": shown for comparison only, with no ε"
    if note.startswith("simulation"):
        return ": the noise follows from the seed; the ε shown is what secret noise would give"
    if note.startswith("no noise"):
        return ": clipped, and nothing else"
    return ": ε holds for the whole run, with noise from a secret of the operating system"
