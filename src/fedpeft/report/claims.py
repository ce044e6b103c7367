"""The paper's claims on a page: verdict, margin, standard error, and the rows compared."""

from __future__ import annotations

import html
import math
from collections import Counter
from collections.abc import Sequence

from fedpeft.results.claims import ABSENT, Comparison, Verdict

__all__ = ["claims_section", "claims_words"]

_MARKS = {"pass": "✓", "fail": "✗", "undecided": "?", ABSENT: "–"}


def claims_words(verdicts: Sequence[Verdict]) -> str:
    """Count the verdicts in one sentence; "" where no claim can be checked."""
    counts = Counter(verdict.verdict for verdict in verdicts)
    if counts[ABSENT] == len(verdicts):
        return ""
    said = (
        f"{counts['pass']} of the paper's {len(verdicts)} claims pass, {counts['fail']} fail, "
        f"{counts['undecided']} are undecided"
    )
    absent = f", {counts[ABSENT]} need rows that are not here" if counts[ABSENT] else ""
    return f"{said}{absent}."


def claims_section(verdicts: Sequence[Verdict]) -> str:
    """Write the section; its heading has the id `claims`."""
    heads = ("Claim", "Verdict", "Margin", "Standard error")
    head = "".join(f'<th scope="col">{text}</th>' for text in heads)
    head += '<th scope="col" class="left">Least favourable comparison</th>'
    body = "".join(map(_row, verdicts))
    return (
        '<section id="claims"><h2>The claims of the paper</h2>'
        "<p>A claim is a set of comparisons over paired seeds. It passes if every margin is above "
        "two standard errors, fails if one is below minus two, and is undecided otherwise. Above 0 "
        "speaks for the claim. Nothing is corrected for the number of comparisons.</p>"
        '<div class="scroll" tabindex="0" role="region" aria-label="Claims of the paper">'
        f'<table class="claims"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
        f"{_folds(verdicts)}</section>\n"
    )


def _row(verdict: Verdict) -> str:
    least = verdict.decisive
    mark = _MARKS.get(verdict.verdict, "")
    word = verdict.verdict.replace(" ", "-")
    cells = (
        ("–", "–", "–")
        if least is None
        else (
            f'{_margin(least)}<span class="sub">{html.escape(verdict.unit)}</span>',
            _error(least),
            f'{html.escape(least.what)}<span class="sub">1 of {len(verdict.comparisons)}</span>',
        )
    )
    margin, error, what = cells
    return (
        f'<tr><th scope="row">{verdict.number}. {html.escape(verdict.claim)}</th>'
        f'<td class="verdict {word}"><span aria-hidden="true">{mark}</span> {verdict.verdict}</td>'
        f'<td>{margin}</td><td>{error}</td><td class="left">{what}</td></tr>'
    )


def _margin(found: Comparison) -> str:
    return f"{found.margin:+.4f}".replace("-", "−")


def _error(found: Comparison) -> str:
    return "unknown: one seed" if math.isnan(found.error) else f"{found.error:.4f}"


def _folds(verdicts: Sequence[Verdict]) -> str:
    """Fold away every comparison of every claim."""
    folds = []
    for verdict in verdicts:
        if len(verdict.comparisons) > 1:
            rows = "".join(
                f'<tr><th scope="row">{html.escape(each.what)}</th><td>{_margin(each)}</td>'
                f"<td>{_error(each)}</td><td>{each.verdict}</td></tr>"
                for each in verdict.comparisons
            )
            folds.append(
                f"<details><summary>Claim {verdict.number}: all {len(verdict.comparisons)} "
                'comparisons</summary><div class="scroll" tabindex="0" role="region" '
                f'aria-label="Comparisons of claim {verdict.number}"><table class="claims"><thead>'
                '<tr><th scope="col">Rows</th><th scope="col">Margin</th><th scope="col">'
                f'Standard error</th><th scope="col">Verdict</th></tr></thead><tbody>{rows}</tbody>'
                "</table></div></details>"
            )
    return "".join(folds)
