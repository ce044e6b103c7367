"""Write the page on which tuning method when, with its pictures, from results files.

    experiments/results/*.jsonl  ->  docs/lab/methods-compared.md, docs/lab/methods-compared/*.png

Every figure comes from the lines; the words around them are the same whatever comes out. A regime
without lines is named as not measured.

    python scripts/write_methods.py [FILE.jsonl ...] [--docs DIR]
"""

from __future__ import annotations

import argparse
import statistics
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

from fedpeft.core.text import byte_words
from fedpeft.pictures.compared import draw_methods
from fedpeft.pictures.style import Picture, write_picture
from fedpeft.report.figures import draw_curves
from fedpeft.results.advice import (
    Ranked,
    Regret,
    Rounds,
    advice_sentence,
    rank,
    regret_words,
    regrets,
    whole_run,
)
from fedpeft.results.evidence import Cell, Entry, Evidence, group_runs
from fedpeft.results.lines import read_runs
from fedpeft.results.runs import Run, panels_of
from regimes import KINDS, REFERENCE, REGIMES, VIEWS, Regime, cells_of, upload_of
from write_evidence import RESULTS, ROOT, condensed

FOLDER = "methods-compared"
_LIMITS = (0.1, 0.25, 0.5, 1, 2, 5, 10, 20, 50)  # times the upload of bias tuning


def main(args: Sequence[str] | None = None) -> None:
    """Read the lines, write the page and its pictures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("files", nargs="*", type=Path, help="default: experiments/results/*.jsonl")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs" / "lab")
    chosen = parser.parse_args(args)
    runs = read_runs(chosen.files or sorted(RESULTS.glob("*.jsonl")))
    page, pictures = make_page(runs, condensed(runs))
    (chosen.docs / FOLDER).mkdir(parents=True, exist_ok=True)
    for name, picture in pictures.items():
        write_picture(picture, chosen.docs / FOLDER / name)
    (chosen.docs / f"{FOLDER}.md").write_text(_broken(page), "utf-8")
    print(f"{chosen.docs / FOLDER}.md: {len(pictures)} pictures, {len(runs)} runs read")


def make_page(runs: Sequence[Run], evidence: Evidence) -> tuple[str, dict[str, Picture]]:
    """Return the page, and its pictures by name."""
    pictures: dict[str, Picture] = {}
    parts, rows = [], []
    for kind, what in KINDS.items():
        found = {regime: cells_of(evidence, kind, regime) for regime in REGIMES}
        rows += [_row(what, regime, cells, evidence) for regime, cells in found.items()]
        parts.append(f"## {what.capitalize()}")
        for regime, cells in found.items():
            if cells:
                name = f"{regime.name}-{what}"
                parts.append(_section(regime, cells, evidence, name))
                title = f"{regime.title}: accuracy of tuning methods on {what}"
                pictures[name] = draw_methods(title, cells, VIEWS)
        missing = [regime.title for regime, cells in found.items() if not cells]
        parts += [f"Not measured yet: {'; '.join(missing).lower()}."] * bool(missing)
    for number, group in enumerate(_groups(runs, evidence)):
        panel = panels_of(group)[0]
        pictures[f"curve-{number + 1}"] = draw_curves(panel, "bytes", width=7.2)
    table = "\n".join(
        [
            "| | regime | the same rounds | the same upload as bias |",
            "| --- | --- | --- | --- |",
            *rows,
        ]
    )
    curves = "\n\n".join(
        f"![{pictures[name].title}]({FOLDER}/{name}.png)"
        for name in pictures
        if name.startswith("curve-")
    )
    page = _PAGE.format(
        runs=evidence.runs,
        settings=len(evidence.cells),
        beds=", ".join(f"`{bed}`" for bed in evidence.beds) or "none",
        table=table,
        sections="\n\n".join(parts),
        curves=curves or "Not measured yet.",
        regret="\n".join(_overall(evidence)),
    )
    return page, pictures


def _groups(runs: Sequence[Run], evidence: Evidence) -> Iterator[list[Run]]:
    """Yield the runs behind the first regime's cells, in the order of the beds."""
    groups = group_runs(runs)
    for kind in KINDS:
        for cell in cells_of(evidence, kind, REGIMES[0]):
            yield groups[evidence.cells.index(cell)]


def _section(regime: Regime, cells: Sequence[Cell], evidence: Evidence, name: str) -> str:
    parts = [f"### {regime.title}"]
    for heading, rounds in VIEWS.items():
        if ranked := rank(cells, rounds):
            found = regrets(cells, evidence, rounds)
            sentence = advice_sentence(ranked, _sizes(cells))
            regret = regret_words(found)
            parts.append(f"**After {heading}.** {sentence}\n{regret[0].upper()}{regret[1:]}.")
    parts.append(f"![{regime.title}]({FOLDER}/{name}.png)")
    parts.append("\n".join(f"- `{cell.bed}`, {cell.model}: {cell.setting.words}" for cell in cells))
    parts.append(_table(cells))
    if regime is REGIMES[0]:
        parts += ["#### By what a client may upload", _limits(cells, evidence)]
    return "\n\n".join(parts)


def _limits(cells: Sequence[Cell], evidence: Evidence) -> str:
    """Return the best method by the bytes that a client may upload in the whole run."""
    references = [cell.entry(REFERENCE) for cell in cells]
    uploads = [
        entry.bytes_up * cell.setting.rounds * cell.setting.cohort / cell.setting.clients
        for cell, entry in zip(cells, references, strict=True)
        if entry
    ]
    lines = ["| a client uploads at most | best method | regret |", "| ---: | --- | --- |"]
    for times in _LIMITS:
        if ranked := rank(cells, upload_of(times)):
            lead = ranked[1].lead if len(ranked) > 1 else None
            more = f", {lead.words} above {ranked[1].label}" if lead else ""
            lines.append(
                f"| {byte_words(times * statistics.fmean(uploads))} | {ranked[0].label}: "
                f"{100 * ranked[0].accuracy:.1f} %{more} "
                f"| {_lost(regrets(cells, evidence, upload_of(times))) or 'unknown'} |"
            )
    return "\n".join(lines)


def _sizes(cells: Sequence[Cell]) -> dict[str, float]:
    """Return label -> bytes that a client sends in a round, the mean over the beds."""
    found: dict[str, list[float]] = {}
    for cell in cells:
        for entry in cell.entries:
            found.setdefault(entry.label, []).append(entry.bytes_up)
    return {label: statistics.fmean(sizes) for label, sizes in found.items()}


def _table(cells: Sequence[Cell]) -> str:
    """Return accuracy by method and bed, after the same rounds and after the same upload."""
    sizes = _sizes(cells)
    order = [row.label for row in rank(cells, whole_run)]
    heads = [f"{cell.bed}{more}" for cell in cells for more in ("", ", same upload")]
    lines = [
        f"| method | a turn up | learning rate | {' | '.join(heads)} | seeds |",
        "| --- | ---: | ---: |" + " ---: |" * (len(heads) + 1),
    ]
    for label in order:
        found = [cell.entry(label) for cell in cells]
        rates = ", ".join(dict.fromkeys(f"{entry.lr:g}" for entry in found if entry))
        seeds = ", ".join(dict.fromkeys(str(len(entry.seeds)) for entry in found if entry))
        cells_text = [
            _score(cell, entry, rounds)
            for cell, entry in zip(cells, found, strict=True)
            for rounds in VIEWS.values()
        ]
        lines.append(
            f"| {label} | {byte_words(sizes[label])} | {rates} | {' | '.join(cells_text)} "
            f"| {seeds} |"
        )
    return "\n".join(lines)


def _score(cell: Cell, entry: Entry | None, rounds: Rounds) -> str:
    values = list(entry.at(rounds(cell, entry)).values()) if entry else []
    if not values:
        return "–"
    spread = f" ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * statistics.fmean(values):.1f}{spread}"


def _row(what: str, regime: Regime, cells: Sequence[Cell], evidence: Evidence) -> str:
    """Return the regime's row of the first table."""
    told = []
    for rounds in VIEWS.values():
        ranked = rank(cells, rounds)
        found = regrets(cells, evidence, rounds)
        told.append(_brief(ranked, found) if ranked else "not measured yet")
    return f"| {what} | {regime.title} | {' | '.join(told)} |"


def _brief(ranked: Sequence[Ranked], found: Sequence[Regret]) -> str:
    lead = ranked[1].lead if len(ranked) > 1 else None
    more = f", {lead.words} above {ranked[1].label}" if lead else ""
    more += f"; regret {_lost(found)}" if found else ""
    return f"**{ranked[0].label}**{more}"


def _lost(found: Sequence[Regret]) -> str:
    """Return mean and worst regret in points; "" if it is unknown."""
    losses = [100 * each.loss for each in found]
    return f"{statistics.fmean(losses):.1f}, at worst {max(losses):.1f}" if losses else ""


def _overall(evidence: Evidence) -> Iterator[str]:
    """Yield what the rule lost on every cell, its bed left out."""
    for heading, rounds in VIEWS.items():
        found = regrets(evidence.cells, evidence, rounds)
        if found:
            mean = 100 * statistics.fmean(each.loss for each in found)
            worst = max(found, key=lambda each: each.loss)
            yield (
                f"- After {heading}: {mean:.1f} points on average over {len(found)} settings, at "
                f"worst {100 * worst.loss:.1f} ({worst.bed}: {worst.chosen} instead of "
                f"{worst.best})."
            )
        else:
            yield f"- After {heading}: not measured yet, for want of a second bed."


def _broken(page: str) -> str:
    """Break lines of prose at 120 columns; tables and pictures stay."""
    return "\n".join(
        line
        if line.startswith(("|", "!", "#"))
        else textwrap.fill(line, 120, subsequent_indent="  " * line.startswith("- "))
        for line in page.split("\n")
    )


_PAGE = """# Which tuning method when

The paper's methods beside LoRA, DoRA, IA3 and LN tuning, after the same number of rounds and after
the same upload.
This page is written by `python scripts/write_methods.py` from the lines of `experiments/results`;
at present {runs} runs in {settings} settings of the beds {beds}.
`fedpeft advise EXPERIMENT` [gives the same advice](../how-to/choose-a-method.md) for a setting of
yours.

*After the same rounds*: accuracy on the test set after all rounds of the setting.
*After the same upload*: a client may send in the whole run what it sends with bias tuning; each
method is scored after the rounds that it can afford, and never after more rounds than were run.
± in sentences is the standard error of a difference over paired seeds, in tables the sample
standard deviation; bars are 95 % intervals of the mean.
Beds weigh the same, and a method can be chosen only if it was measured on all beds of the row.
*Regret* is what the advice costs on a bed that it does not know: accuracy of the best method there,
less that of the method that the other beds suggest.

{table}

{sections}

## Accuracy against bytes

Bytes are those of all clients, both ways; each curve ends after the same number of rounds.

{curves}

## How good the advice is

Every measured setting once as the user's own, with its bed left out:

{regret}
"""


if __name__ == "__main__":
    main()
