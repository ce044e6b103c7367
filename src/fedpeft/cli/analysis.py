"""`gap` and `theorem`: analyses of backbones and of finished runs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from fedpeft.core.errors import ConfigError
from fedpeft.studies.gap.analysis import analyse_gap, analyse_runs
from fedpeft.studies.gap.features import GapRequest
from fedpeft.studies.gap.runs import RunsRequest, label_runs
from fedpeft.studies.theorem.bound import TheoremRequest, check_theorem
from fedpeft.studies.theorem.smoothness import Search

__all__ = ["GapChoice", "gap_command", "theorem_command", "theorem_request"]


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
    """Print the distances; write `gap.json` and the pictures if there is a folder for them.

    Raises:
      ConfigError: if an option cannot be read or a set not be loaded.
    """
    found = _compare_runs(choice, out) if choice.runs else _compare_sets(choice, out)
    if as_json:
        typer.echo(json.dumps(found))
        return
    for kind in ("unbalanced", "balanced"):
        if not choice.runs or kind == "unbalanced":  # runs have equally many examples
            _print_gap(kind, found[kind])
    for kind, names in found["within_5_percent"].items():
        typer.echo(f"expected values within 5 %, {kind}: {', '.join(names) or 'no measure'}")
    if out is not None:
        typer.echo(f"written: {out / 'gap.json'}, gap.svg, gap.png")


def _compare_sets(choice: GapChoice, out: Path | None) -> dict[str, Any]:
    if not choice.data:
        raise ConfigError(
            "gap: found nothing to compare; name sets by --data [NAME=]SOURCE (two or more, beside "
            "the reference), or the folders of three finished runs or more"
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
            f"gap: {extra[0]} does not go with run folders, which name their own model and data; "
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
            "add the folders of others"
        )
    return analyse_runs(request, reference, _expected(choice.expect, runs), out)


def _print_gap(kind: str, found: Mapping[str, Any]) -> None:
    sizes = ", ".join(f"{name} {size}" for name, size in found["examples"].items())
    typer.echo(f"{kind} ({sizes} examples)")
    for measure, row in found["distances"].items():
        cells = "  ".join(f"{name} {value:.4g}" for name, value in row.items())
        typer.echo(f"  {measure:<19} {cells}")


def _named(text: str) -> tuple[str, str]:
    """Part `NAME=SOURCE`; a source alone is its own name."""
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
    """Read the options of `theorem`."""
    return TheoremRequest(sample, every, Search(points=points))


def theorem_command(run: Path, request: TheoremRequest, *, as_json: bool) -> None:
    """Print the bound round by round.

    Raises:
      RunFolderError: if the run has not kept its deltas.
    """
    found = check_theorem(run, request, lambda number: typer.echo(f"round {number}", err=True))
    if as_json:
        typer.echo(json.dumps(found))
        return
    typer.echo("round      loss     bound     slack   P theta   P delta      beta  holds")
    for row in found["rounds"]:
        keys = ("loss_end", "bound", "slack", "p_theta", "p_delta", "beta")
        cells = " ".join(f"{row[key]:>9.4g}" for key in keys)
        typer.echo(f"{row['round']:>5} {cells}  {'yes' if row['holds'] else 'NO'}")
    caught = "caught" if not found["control"]["hundredth_holds"] else "NOT caught"
    typer.echo(f"control: a hundredth of beta on a quadratic is {caught}")
    typer.echo(f"note: {found['note']}")
    typer.echo(f"written: {run / 'theorem.json'}, theorem.svg, theorem.png")
