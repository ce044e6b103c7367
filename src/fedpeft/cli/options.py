"""Options and arguments that several commands share."""

from __future__ import annotations

import os.path
from pathlib import Path
from typing import Annotated

import typer

from fedpeft.cli.completing import setting, settings


def expanded(path: Path | None) -> Path | None:
    """Return a path with `~` written out; one that names no user's folder stays as it is."""
    return None if path is None else Path(os.path.expanduser(path))


File = Annotated[
    Path | None,
    typer.Argument(metavar="[EXPERIMENT.toml]", hidden=True, callback=expanded),
]
Sets = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Override one key; repeatable.",
        autocompletion=setting,
    ),
]
Overs = Annotated[
    list[str] | None,
    typer.Option(
        "--over",
        metavar="KEY=V1,V2,...",
        help="Multiply the rows; repeatable.",
        autocompletion=settings,
    ),
]
Out = Annotated[
    Path | None,
    typer.Option(
        "--out", metavar="DIR", help="Folder; by default runs/<name>-<time>.", callback=expanded
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]
