"""`handshake` and `status`: a deployment before it runs, and how a run stands."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from fedpeft.cli.app import app
from fedpeft.cli.ending import ending
from fedpeft.cli.options import Json, Sets

__all__ = ["handshake", "status"]


@app.command()
def handshake(
    run: Annotated[Path, typer.Argument(metavar="RUN", hidden=True)],
    sets: Sets = None,
    json: Json = False,
) -> None:
    """Ask every site of a deployment who it is, and train nothing.

    RUN is an experiment file with engine.name = "flower", or the folder of a run. Each site
    compares backbone, data classes, experiment and versions with the server's, and so does the
    server. Exit code 3 if a site is missing or does not fit; the reasons are shown.

    \b
    Examples:
      fedpeft handshake server/experiment.toml
      fedpeft handshake runs/mine --set engine.wait=30
    """
    with ending():
        _handshake(run, sets or [], as_json=json)


@app.command()
def status(
    run: Annotated[Path, typer.Argument(metavar="RUN", hidden=True)], json: Json = False
) -> None:
    """Show how a run stands: rounds, sites, bytes, epsilon.

    RUN is the folder of a run, on any engine, at work or not. Nothing is changed.

    \b
    Examples:
      fedpeft status runs/mine
      fedpeft status runs/mine --json
    """
    with ending():
        from fedpeft.runs.status import read_status

        found = read_status(run)
        _say(found, _status_lines(found), as_json=json)


def _handshake(run: Path, sets: Sequence[str], *, as_json: bool) -> None:
    import tempfile

    from fedpeft.experiment.read import read_experiment
    from fedpeft.experiment.resolve import resolve
    from fedpeft.federation.deploying import greet_sites
    from fedpeft.runs.folder import RunFolder

    file = RunFolder(run).experiment if run.is_dir() else run
    experiment = resolve(read_experiment(file, ["engine.name=flower", *sets])).experiment
    with tempfile.TemporaryDirectory(prefix="fedpeft-handshake-") as place:
        found = dict(greet_sites(experiment, Path(place)))
    number = experiment.data.partition.clients
    lines = [f"{number} of {number} sites fit this server and this experiment"]
    sites = found.get("sites", {})
    for name in found.get("names", []):
        facts = sites[name]["facts"]
        lines.append(
            f"  {name:<20} {facts.get('examples', '?')} examples, {facts.get('device', '?')}, "
            f"fedpeft {facts.get('version.fedpeft', '?')}"
        )
    _say(found, lines, as_json=as_json)


def _say(found: Mapping[str, Any], lines: Sequence[str], *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(found))
        return
    for line in lines:
        typer.echo(line)
    if found.get("sites") and isinstance(found["sites"], list):
        _print_sites(found["sites"])


def _status_lines(found: Mapping[str, Any]) -> list[str]:
    from fedpeft.core.words import byte_words

    names = dict.fromkeys((found["metric"], "loss"))
    metrics = [f"{n} {found['metrics'][n]:.4g}" for n in names if n in found["metrics"]]
    privacy = [] if found["epsilon"] is None else [f"epsilon {found['epsilon']:.4g}"]
    sent = byte_words(found["bytes_up"] + found["bytes_down"])
    lines = [
        f"{found['name']}: {found['state']}, round {found['round']} of {found['rounds']}, "
        f"method {found['method']}, engine {found['engine']}",
        ", ".join([*metrics, *privacy, f"{sent} sent"]),
    ]
    if found["last_failures"]:
        failed = [f"{name}: {reason}" for name, reason in found["last_failures"].items()]
        lines.append(f"failed in the last round: {'; '.join(failed[:5])}")
    lines += [f"refused: node {node}: {why}" for node, why in found["refused"].items()]
    return lines


def _print_sites(rows: Sequence[Mapping[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    from fedpeft.core.words import byte_words
    from fedpeft.launch.progress import time_words

    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("site", "last contact", "turns", "failures", "up", "down", "last failure"):
        table.add_column(name, no_wrap=name == "site", overflow="fold")
    for row in rows:
        since = row["seconds_since"]
        table.add_row(
            row["name"],
            "never" if since is None else f"{time_words(since)} ago",
            str(row["turns"]),
            str(row["failures"]),
            byte_words(row["bytes_up"]),
            byte_words(row["bytes_down"]),
            row["last_failure"] or "",
        )
    width = None if sys.stdout.isatty() else 140
    Console(width=width, highlight=False).print(table, markup=False)
