"""Options and arguments that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypeVar

import typer

from fedpeft.cli.completing import choices, setting, settings
from fedpeft.core.text import home

_Paths = TypeVar("_Paths", Path, list[Path], None)


def expanded(paths: _Paths) -> _Paths:
    """Return paths with `~` written out: the shell leaves it in `--out=~/x` and in quotes."""
    if isinstance(paths, list):
        return [home(path) for path in paths]
    return None if paths is None else home(paths)


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
Results = Annotated[
    Path | None,
    typer.Option(
        "--results",
        metavar="FILE.jsonl",
        help="A line for each finished run; runs that have one count as done.",
        callback=expanded,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]
Form = Annotated[
    str,
    typer.Option(
        "--as",
        metavar="FORM",
        help="adapter: without the base model; merged: an ordinary model.",
        autocompletion=choices(("adapter", "merged")),
        show_default=False,
    ),
]
AfterOnly = Annotated[
    bool, typer.Option("--after-only", help="Leave out the model before training.")
]
MaxNewTokens = Annotated[
    int, typer.Option("--max-new-tokens", min=1, help="Longest answer, in tokens.")
]
Temperature = Annotated[
    float,
    typer.Option(
        "--temperature", metavar="T", min=0, help="0: the most probable token; above: drawn."
    ),
]
DrawSeed = Annotated[int, typer.Option("--seed", min=0, help="Seed of drawn tokens.")]
