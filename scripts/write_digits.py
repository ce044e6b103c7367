"""Put the results of the digits experiment (`make reproduce-digits`) into the documentation.

    runs/small/{table1,...}/sweep.json, gap-sets/gap.json, theorem/theorem.json, claims
        -> docs/lab/results-digits.md, docs/lab/results-digits/*.png, .../report.html

Every figure of the page is read from the runs; the words around them are the same whatever comes
out.

    python scripts/write_digits.py
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedpeft.launch.sweep_table import TableLine, table_lines
from fedpeft.results.claims import Verdict, check_claims
from fedpeft.results.lines import read_runs

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs" / "lab"

GRIDS = {
    "table1": "Table 1: communication (20 rounds of 5 epochs)",
    "table2": "Table 2: clients, participants, skew (10 rounds of 2 epochs)",
    "table3": "Table 3: differential privacy (10 rounds of 2 epochs)",
    "table4": "Table 4: few examples (20 rounds of 5 epochs)",
    "backbone": "Backbones (10 rounds of 5 epochs)",
    "gap": "Domain gap: accuracy (10 rounds of 2 epochs)",
}

PICTURES = {
    "report-bytes.png": "Fig. 3: accuracy against bytes",
    "gap-sets/gap.png": "Fig. 4(a): seven sets in the LDA plane of the frozen features",
    "gap-methods/gap.png": "Fig. 4(b): the features of five tuning methods on the digits",
    "theorem/theorem.png": "Theorem 1: loss, bound, and its parts by round",
}


def main() -> None:
    """Read the runs, write the page and what it shows."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--runs", type=Path, default=Path("runs/small"))
    runs: Path = parser.parse_args().runs
    folder = DOCS / "results-digits"
    folder.mkdir(exist_ok=True)
    place = (
        f"{runs.resolve().parents[1]}/"  # of the checkout; bundled models are found by full path
    )
    report = (runs / "report.html").read_text("utf-8").replace(place, "")
    (folder / "report.html").write_text(report, "utf-8")
    for name in PICTURES:
        shutil.copyfile(runs / name, folder / _flat(name))
    grids = [runs / name for name in GRIDS]
    verdicts = check_claims(read_runs(grids))
    (DOCS / "results-digits.md").write_text(_page(runs, verdicts), "utf-8")


def _flat(name: str) -> str:
    return name.replace("/gap.png", ".png").replace("theorem/", "").replace("report-", "")


def _page(runs: Path, verdicts: Sequence[Verdict]) -> str:
    tables = "\n\n".join(
        f"## {title}\n\n`experiments/small/{name}.toml`\n\n{_grid(runs / name)}"
        for name, title in GRIDS.items()
    )
    pictures = "\n\n".join(
        f"![{about}](results-digits/{_flat(name)})\n\n*{about}.*"
        for name, about in PICTURES.items()
    )
    return _PAGE.format(
        claims=_claims(verdicts),
        tables=tables,
        gap=_gap(runs / "gap-sets" / "gap.json"),
        theorem=_theorem(runs / "theorem" / "theorem.json"),
        pictures=pictures,
    )


def _grid(folder: Path) -> str:
    results = json.loads((folder / "sweep.json").read_text("utf-8"))
    rows = [
        "| row | accuracy | seeds | trained | bytes a client and way |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    return "\n".join(rows + [_row(line) for line in table_lines(results)])


def _row(line: TableLine) -> str:
    figure = f"{line.mean:.3f} ± {line.deviation:.3f}"
    seeds = f"{line.finished} of {line.runs}"
    return f"| {line.label} | {figure} | {seeds} | {line.trained:,} | {line.payload_bytes:,} |"


def _claims(verdicts: Sequence[Verdict]) -> str:
    rows = ["| | claim | verdict | what decides it |", "| --- | --- | --- | --- |"]
    for verdict in verdicts:
        least = verdict.decisive
        why = "–"
        if least is not None:
            unit = "" if verdict.unit == "accuracy" else f" ({verdict.unit})"
            low, high = least.interval
            why = f"{least.what}: {least.margin:+.3f} ({low:+.3f} to {high:+.3f}){unit}"
            why += f", the least of {len(verdict.comparisons)}; {', '.join(verdict.sources)}"
        parts = "; ".join(f"{block}: {word}" for block, word in verdict.blocks.items())
        word = f"**{verdict.verdict}**" + (f" ({parts})" if parts else "")
        rows.append(f"| {verdict.number} | {verdict.claim} | {word} | {why} |")
    return "\n".join(rows)


def _gap(path: Path) -> str:
    gap: dict[str, Any] = json.loads(path.read_text("utf-8"))
    names = list(gap["balanced"]["distances"]["lda2"])
    rows = ["| | " + " | ".join(names) + " |", "| --- |" + " ---: |" * len(names)]
    for part in ("unbalanced", "balanced"):
        for measure in ("lda2", "raw"):
            values = gap[part]["distances"][measure]
            cells = " | ".join(f"{values[name]:.2f}" for name in names)
            rows.append(f"| {gap['measures'][measure]}, {part} | {cells} |")
    return "\n".join(rows)


def _theorem(path: Path) -> str:
    found: dict[str, Any] = json.loads(path.read_text("utf-8"))
    rows = [
        "| round | loss | bound | P of the backbone | P of the delta | slack |",
        "| ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for each in found["rounds"]:
        keys = ("loss_end", "bound", "p_theta", "p_delta", "slack")
        cells = " | ".join(f"{each[key]:.3f}" for key in keys)
        rows.append(f"| {each['round']} | {cells} |")
    holds = "holds in every round" if found["holds"] else "does NOT hold in every round"
    caught = "is caught" if not found["control"]["hundredth_holds"] else "is NOT caught"
    return "\n".join(rows) + f"\n\nThe bound {holds}; the negative control (β/100) {caught}."


_PAGE = """# Results on digits

What `make reproduce-digits` gave: the paper's grid on digits, 64 clients with Dirichlet 0.1 unless
a row says otherwise, the bundled backbone, seeds 1, 42, 3407, mean ± sample standard deviation. The
same runs, with intervals, curves, the command and configuration of every row, are in
[the report](results-digits/report.html) (one file, for a browser). This page is written by
`python scripts/write_digits.py` from those runs.

Fewer rounds and epochs than the paper's 50 of 10, one small network, one easy task: these tables
say how the methods compare *here*. They are no evidence for or against the paper's own figures.

## The paper's claims

A claim passes if every comparison is above its bound by a one-sided t test over paired seeds at
0.05, fails if one is below it after Holm's correction, and is undecided otherwise. The last column
is the comparison that speaks least for it, with its 90 % interval.

{claims}

{tables}

Learning rates come from the searches in [learning-rates.md](learning-rates.md),
[privacy-rates.md](privacy-rates.md) and [paper-tables.md](paper-tables.md), on validation data
with seed 1, at 8 clients a round; outside Table 3 and the backbones at 20 rounds of 5 epochs. There
the curves are flat from 0.005 on, and their highest points gave bias, adapter and prompt 0.005,
head 0.1 and full 0.05. In 10 rounds of 2 epochs, a fifth of the steps, such small rates have not
converged: that speaks against bias, adapter and prompt in Table 2 and on the domain gap. With fewer
clients a round, 0.05 is too much for full fine-tuning: that speaks for them in Table 1. Nothing was
tuned after these results were seen.

In Table 3, modes `central` and `example` are accounted: (5, 10⁻³) for a client, or for an example.
Mode `paper` repeats the published mechanism and guarantees nothing. The noise is secret, so a
repetition gives other figures there.

## Domain gap: distances

From the glyphs that the backbone was pretrained on (`fedpeft gap`).

{gap}

## Theorem 1

Bias tuning, loss on 128 training examples (`fedpeft theorem`).

{theorem}

## Pictures

{pictures}
"""


if __name__ == "__main__":
    main()
