"""`gap` and `theorem`: analyses of backbones and of finished runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedpeft.cli.printing import say, show, show_table
from fedpeft.core.errors import ConfigError
from fedpeft.studies.gap.analysis import analyse_gap, analyse_runs
from fedpeft.studies.gap.features import GapRequest, RunsRequest, label_runs
from fedpeft.studies.theorem.bound import TheoremRequest, check_theorem
from fedpeft.studies.theorem.smoothness import Search

_BOUND: Mapping[str, str] = {
    "loss": "loss_end",
    "bound": "bound",
    "slack": "slack",
    "P theta": "p_theta",
    "P delta": "p_delta",
    "beta": "beta",
}
"""Headings of the figures of a round -> their names in `theorem.json`."""


@dataclass(frozen=True)
class GapChoice:
    """The options of `gap`, as they were typed."""

    runs: Sequence[str]
    model: str | None
    reference: str | None
    data: Sequence[str]
    split: str
    normalize: str | None
    sample: int | None
    seed: int
    expect: Sequence[str]


def gap_command(choice: GapChoice, out: Path | None, *, as_json: bool) -> None:
    """Print the distances; write `gap.json` and the pictures where `out` is given.

    Raises:
      ConfigError: if an option cannot be read or a data set cannot be loaded.
    """
    found = _compare_runs(choice, out) if choice.runs else _compare_sets(choice, out)
    show(found, _gap_lines(choice, found, out), as_json=as_json)


def _gap_lines(choice: GapChoice, found: Mapping[str, Any], out: Path | None) -> Iterator[str]:
    for kind in ("unbalanced",) if choice.runs else ("unbalanced", "balanced"):
        yield from _distance_lines(kind, found[kind])  # runs have equally many examples
    for kind, names in found["within_5_percent"].items():
        yield f"expected values within 5 %, {kind}: {', '.join(names) or 'no measure'}"
    if out is not None:
        yield f"written: {out / 'gap.json'}, gap.svg, gap.png"


def _compare_sets(choice: GapChoice, out: Path | None) -> dict[str, Any]:
    if not choice.data:
        raise ConfigError(
            "gap: found nothing to compare; name data sets by --data [NAME=]SOURCE (two or more, "
            "beside the reference), or the folders of three finished runs or more"
        )
    reference, source = _named(choice.reference or "glyphs")
    sources = {reference: source}
    for text in choice.data:
        name, source = _named(text)
        if name in sources:
            raise ConfigError(f"--data: {name!r} is named twice; name one of them: NAME=SOURCE")
        sources[name] = source
    request = GapRequest(
        choice.model or "vit-glyphs-8",
        sources,
        choice.split,
        choice.normalize or "model",
        choice.sample,
        choice.seed,
    )
    return analyse_gap(request, reference, _expected(choice.expect, sources), out)


def _compare_runs(choice: GapChoice, out: Path | None) -> dict[str, Any]:
    set_ = {"--data": choice.data, "--model": choice.model, "--normalize": choice.normalize}
    extra = [name for name, value in set_.items() if value]
    if extra:
        raise ConfigError(
            f"gap: {extra[0]} was given with run folders, which name their own model and data; "
            "leave it out, or leave the folders out to compare data sets"
        )
    runs = label_runs(choice.runs)
    reference = choice.reference or next(iter(runs))
    request = RunsRequest(runs, choice.split, choice.sample, choice.seed)
    if reference not in runs:
        raise ConfigError(f"--reference: no run {reference!r}; found are {', '.join(runs)}")
    if len(runs) < 3:
        raise ConfigError(
            f"gap: found {len(runs)} runs ({', '.join(runs)}); a plane needs at least 3: "
            "add the folders of other runs"
        )
    return analyse_runs(request, reference, _expected(choice.expect, runs), out)


def _distance_lines(kind: str, found: Mapping[str, Any]) -> Iterator[str]:
    sizes = ", ".join(f"{name} {size}" for name, size in found["examples"].items())
    yield f"{kind} ({sizes} examples)"
    for measure, row in found["distances"].items():
        cells = "  ".join(f"{name} {value:.4g}" for name, value in row.items())
        yield f"  {measure:<19} {cells}"


def _named(text: str) -> tuple[str, str]:
    """Split `NAME=SOURCE` into the two; a source alone is its own name."""
    name, sign, source = text.partition("=")
    if not name or (sign and not source):
        raise ConfigError(f"--data: found {text!r}; allowed are SOURCE and NAME=SOURCE")
    return name, source if sign else text


def _expected(texts: Sequence[str], sources: Mapping[str, object]) -> dict[str, float]:
    values = {}
    for text in texts:
        name, _, value = text.partition("=")
        try:
            values[name] = float(value)
        except ValueError:
            raise ConfigError(f"--expect: found {text!r}; allowed is NAME=NUMBER") from None
        if name not in sources:
            raise ConfigError(f"--expect: no set {name!r}; found are {', '.join(sources)}")
    return values


def theorem_request(sample: int, every: int, points: int) -> TheoremRequest:
    """Return the request that the options of `theorem` make."""
    return TheoremRequest(sample, every, Search(points=points))


def theorem_command(run: Path, request: TheoremRequest, *, as_json: bool) -> None:
    """Print the bound of each round.

    Raises:
      RunFolderError: if the run has not kept its deltas.
    """
    found = check_theorem(run, request, lambda number: say(f"round {number}", err=True))
    if not as_json:
        show_table(("round", *_BOUND, "holds"), map(_bound_cells, found["rounds"]), numbers=True)
    show(found, _theorem_lines(run, found), as_json=as_json)


def _bound_cells(row: Mapping[str, Any]) -> list[str]:
    figures = (f"{row[key]:.4g}" for key in _BOUND.values())
    return [str(row["round"]), *figures, "yes" if row["holds"] else "NO"]


def _theorem_lines(run: Path, found: Mapping[str, Any]) -> Iterator[str]:
    caught = "caught" if not found["control"]["hundredth_holds"] else "NOT caught"
    yield f"control: a hundredth of beta on a quadratic is {caught}"
    yield f"note: {found['note']}"
    yield f"written: {run / 'theorem.json'}, theorem.svg, theorem.png"
