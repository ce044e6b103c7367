"""Options and arguments that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

File = Annotated[
    Path | None,
    typer.Argument(metavar="[EXPERIMENT.toml]", hidden=True),
]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override one key; repeatable."),
]
Overs = Annotated[
    list[str] | None,
    typer.Option("--over", metavar="KEY=V1,V2,...", help="Multiply the rows; repeatable."),
]
Out = Annotated[
    Path | None,
    typer.Option("--out", metavar="DIR", help="Folder; by default runs/<name>-<time>."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]
