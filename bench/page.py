"""Write docs/lab/benchmarks.md from its JSON files; nothing on the page is written by hand."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.figures import Report
from bench.machine import ROOT
from bench.rows import ROWS, Row

__all__ = ["PAGE", "RESULTS", "file_of", "page_of", "read_results", "verdict", "write_page"]

RESULTS = ROOT / "docs" / "lab" / "benchmarks"
"""Where the measured rows are kept, one JSON file each."""

PAGE = ROOT / "docs" / "lab" / "benchmarks.md"

_HEAD = """\
# Benchmarks

fedpeft against other ways of doing the same work. Written by `make bench` from the files in
[`docs/lab/benchmarks/`](benchmarks/README.md); every number on this page is in one of them.

    make bench                    every row whose code changed since it was measured
    make bench ROW=3 FORCE=1      one row, again

- **One machine, in turns.** Contestants alternate, A B A B, each in a process of its own; a ratio
  is formed from two neighbouring measurements. Shown are the smallest, the middle and the largest
  ratio; the verdict is on the middle one.
- **The same work.** Starting delta, clients, cohorts and batches are written to a folder that every
  contestant reads. Final accuracy is compared for every contestant, and the final delta where both
  compute the same thing; a row whose check fails is void.
- **Stated threads.** A worker of ours has one thread; contestants get the count that their row
  names. `OMP_WAIT_POLICY=PASSIVE` for all.
"""


def file_of(row: Row) -> Path:
    """Return where a row's result is kept."""
    return RESULTS / f"row-{row.name}.json"


def read_results() -> dict[str, Report]:
    """Return row name -> what was measured, for the rows that were."""
    found = {}
    for row in ROWS:
        file = file_of(row)
        if file.exists():
            found[row.name] = json.loads(file.read_text("utf-8"))
    return found


def write_page() -> str:
    """Write the page, and return a sentence about it."""
    results = read_results()
    PAGE.write_text(page_of(results), "utf-8")
    return f"{PAGE.relative_to(ROOT)}: {len(results)} of {len(ROWS)} rows measured"


def verdict(found: Mapping[str, Any]) -> str:
    """Return one word about a figure."""
    if found["met"] is None:
        return ""
    return "met" if found["met"] else "missed"


def page_of(results: Mapping[str, Report]) -> str:
    """Return the page's text."""
    parts = [_HEAD, _table(results), _measured(results)]
    parts += [_section(row, results[row.name]) for row in ROWS if row.name in results]
    return "\n".join(parts)


def _table(results: Mapping[str, Report]) -> str:
    lines = [
        "| row | what | target | min | median | max | verdict |",
        "| --- | --- | ---: | ---: | ---: | ---: | --- |",
    ]
    for row in ROWS:
        report = results.get(row.name)
        if report is None or not report["figures"]:
            why = "not measured yet" if report is None else f"not measured: {_why_not(report)}"
            lines.append(f"| {row.name} | {row.title} | {row.target} | | | | {why} |")
            continue
        lines += [_line(row, report, found) for found in report["figures"] if found["target"]]
    return "\n".join([*lines, ""])


def _line(row: Row, report: Report, found: Mapping[str, Any]) -> str:
    sign = "≤" if found["at_most"] else "≥"
    numbers = " | ".join(f"{found[key]:.3g}" for key in ("min", "median", "max"))
    word = verdict(found) if _checks_hold(report) else "void: a check failed"
    word = f"**{word}**" if word == "missed" else word
    return f"| {row.name} | {found['name']} | {sign} {found['target']:g} | {numbers} | {word} |"


def _why_not(report: Report) -> str:
    return " ".join(str(report.get("reason", "no figures")).split())[:160]


def _checks_hold(report: Report) -> bool:
    return all(found["ok"] for found in report["checks"])


def _measured(results: Mapping[str, Report]) -> str:
    """When, where and with which command."""
    lines = [
        "| row | command | date | hardware | versions | seconds | others' share of the cores |",
        "| --- | --- | --- | --- | --- | ---: | ---: |",
    ]
    for row in ROWS:
        report = results.get(row.name)
        if report is None:
            lines.append(f"| {row.name} | `make bench ROW={row.name}` | | | | | |")
            continue
        versions = ", ".join(f"{name} {found}" for name, found in report["versions"].items())
        lines.append(
            f"| {row.name} | `make bench ROW={row.name}` | {report['date']} | "
            f"{_hardware(report['hardware'])} | {versions} | {report['seconds']:.0f} | "
            f"{_busy(report)} |"
        )
    note = (
        "The last column was sampled before and between measurements, while no contestant worked; "
        "a machine that others use makes ratios wider, and those of two cores against one smaller."
    )
    return "\n".join(["", *lines, "", note, ""])


def _hardware(found: Mapping[str, Any]) -> str:
    return f"{found['processor']}, {found['cores']} cores, {found['memory_gib']:.0f} GiB"


def _busy(report: Report) -> str:
    shares: Sequence[float] = report.get("busy") or []
    return f"{min(shares):.0%} to {max(shares):.0%}" if shares else ""


def _section(row: Row, report: Report) -> str:
    lines = ["", f"## Row {row.name}: {row.title}", ""]
    if not report["available"]:
        return "\n".join([*lines, f"Not measured on this machine: {_why_not(report)}.", ""])
    lines += [f"Target: {row.target}.", ""]
    lines += [f"- {note}" for note in report.get("notes", [])]
    lines += ["", *_reported(report), *_sides(report), "**Checks**", ""]
    lines += [f"- {_mark(c)} {c['name']}: {c['detail']}." for c in report["checks"]]
    missed = [found for found in report["figures"] if found["met"] is False]
    why = str(report.get("why_missed") or row.why_missed)
    if missed and why:
        lines += ["", "**Why the target is missed**", "", why]
    return "\n".join([*lines, ""])


def _mark(found: Mapping[str, Any]) -> str:
    return "holds," if found["ok"] else "**fails,**"


def _reported(report: Report) -> list[str]:
    """Figures without a target."""
    plain = [found for found in report["figures"] if not found["target"]]
    if not plain:
        return []
    lines = ["| also measured | min | median | max |", "| --- | ---: | ---: | ---: |"]
    for found in plain:
        numbers = " | ".join(f"{found[key]:.3g}" for key in ("min", "median", "max"))
        lines.append(f"| {found['name']} | {numbers} |")
    return [*lines, ""]


def _sides(report: Report) -> list[str]:
    """What each side took, figure by figure."""
    rows = [
        f"| {found['name']} | {side} | {_words(values)} |"
        for found in report["figures"]
        for side, values in found["sides"].items()
    ]
    return ["| figure | side | measured |", "| --- | --- | --- |", *rows, ""] if rows else []


def _words(values: object) -> str:
    if isinstance(values, Mapping):
        shown = [f"{str(k).replace('_', ' ')}: {_words(v)}" for k, v in values.items() if v != {}]
        return "; ".join(shown)
    if isinstance(values, list):
        return ", ".join(_words(value) for value in values)
    return f"{values:.4g}" if isinstance(values, float) else str(values)
