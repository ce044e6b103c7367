"""Forms of output that commands share: JSON or lines, and tables."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence

import typer

from fedpeft.core.strict_json import to_json


def show(found: object, lines: Iterable[str], *, as_json: bool) -> None:
    """Print one JSON value and nothing else, or lines for people.

    Args:
      found: what JSON can hold.
      lines: made only where they are printed.
      as_json: print `found` and no line.
    """
    for line in [to_json(found, ascii_only=True)] if as_json else lines:
        typer.echo(line)


def show_table(
    names: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: bool = False
) -> None:
    """Print a table; its first column is never wrapped.

    Args:
      names: headings of the columns.
      rows: cells, as many as there are columns.
      numbers: all columns but the first hold numbers: aligned to the right and never wrapped.
    """
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in names:
        first = name == names[0]
        table.add_column(
            name,
            justify="right" if numbers and not first else "left",
            no_wrap=first or numbers,
            overflow="fold",
        )
    for row in rows:
        table.add_row(*row)
    width = None if sys.stdout.isatty() else 140
    Console(width=width, highlight=False).print(table, markup=False)
