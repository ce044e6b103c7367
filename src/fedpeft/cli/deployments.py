"""`handshake` and `status`: whether a deployment can start, and the state of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from fedpeft.cli.app import app
from fedpeft.cli.ending import ending
from fedpeft.cli.options import Json, Sets, expanded
from fedpeft.cli.printing import show, show_table

_SITE_COLUMNS = ("site", "last contact", "turns", "failures", "up", "down", "last failure")


@app.command()
@ending()
def handshake(
    run: Annotated[Path, typer.Argument(metavar="RUN", hidden=True, callback=expanded)],
    sets: Sets = None,
    json: Json = False,
) -> None:
    """Check that every site of a deployment fits, without training.

    RUN is an experiment file with engine.name = "flower", or a run folder. Sites and server compare
    backbone, data classes, experiment and versions. Exit code 3 if a site is missing or does not
    fit; the reasons are shown.

    \b
    Examples:
      fedpeft handshake server/experiment.toml
      fedpeft handshake runs/mine --set engine.wait=30
    """
    _handshake(run, sets or [], as_json=json)


@app.command()
@ending()
def status(
    run: Annotated[Path, typer.Argument(metavar="RUN", hidden=True, callback=expanded)],
    json: Json = False,
) -> None:
    """Show the state of a run: rounds, sites, bytes, epsilon.

    RUN is the folder of a run, on any engine, running or not. Nothing is changed.

    \b
    Examples:
      fedpeft status runs/mine
      fedpeft status runs/mine --json
    """
    from fedpeft.runs.status import read_status

    found = read_status(run)
    show(found, _status_lines(found), as_json=json)
    if found["sites"] and not json:
        show_table(_SITE_COLUMNS, map(_site_cells, found["sites"]))


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
    if found.get("unused"):
        used, unused = int(found["evaluated"]), int(found["unused"])
        lines.append(
            f"the server evaluates on {used} of its {used + unused} examples: {unused} are its "
            "training split, on which it does not train"
        )
    show(found, lines, as_json=as_json)


def _status_lines(found: Mapping[str, Any]) -> list[str]:
    from fedpeft.core.text import byte_words

    names = dict.fromkeys((found["metric"], "loss"))
    figures = {name: found["metrics"].get(name) for name in names}
    metrics = [f"{name} {value:.4g}" for name, value in figures.items() if value is not None]
    privacy = []
    if found["epsilon"] is not None:
        privacy = [
            f"epsilon {found['epsilon']:.4g} at delta {found['privacy_delta']:g} for one "
            f"{found['privacy_unit']}"
        ]
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


def _site_cells(row: Mapping[str, Any]) -> list[str]:
    from fedpeft.core.text import byte_words
    from fedpeft.launch.progress import time_words

    since = row["seconds_since"]
    return [
        row["name"],
        "never" if since is None else f"{time_words(since)} ago",
        str(row["turns"]),
        str(row["failures"]),
        byte_words(row["bytes_up"]),
        byte_words(row["bytes_down"]),
        row["last_failure"] or "",
    ]
