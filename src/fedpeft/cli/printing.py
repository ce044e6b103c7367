"""Forms of output that commands share: JSON or lines, and tables; all fit the terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence

import typer

from fedpeft.core.strict_json import to_json
from fedpeft.core.terminal import NO_BREAK, width_of, wrapped

_UNBOUND = 140  # columns of a table where nothing says how wide it may be
_NARROW = 20  # columns below which sentences in a table become towers


def say(text: str, *, err: bool = False) -> None:
    """Print lines for people, broken at spaces where they are wider than the terminal."""
    width = width_of(sys.stderr if err else sys.stdout)
    typer.echo("\n".join(wrapped(text, width)), err=err)


def show(found: object, lines: Iterable[str], *, as_json: bool) -> None:
    """Print one JSON value and nothing else, or lines for people.

    Args:
      found: what JSON can hold.
      lines: made only where they are printed.
      as_json: print `found` and no line.
    """
    if as_json:
        typer.echo(to_json(found, ascii_only=True))
        return
    for line in lines:
        say(line)


def show_table(
    names: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: bool = False
) -> None:
    """Print a table, or its rows one below the other where the terminal is too narrow for it.

    Args:
      names: headings of the columns.
      rows: cells, as many as there are columns.
      numbers: all columns but the first hold numbers: aligned to the right and never wrapped.
    """
    cells = [list(row) for row in rows]
    width = width_of(sys.stdout) or _UNBOUND
    columns = list(zip(names, *cells, strict=True))
    least = [_least(column, whole=numbers or not index) for index, column in enumerate(columns)]
    if sum(least) + 2 * (len(least) - 1) <= width:
        _print_table(names, cells, least, numbers=numbers, width=width)
        return
    for row in cells:
        for line in _record(names, row, width):
            say(line)


def _least(column: Sequence[str], *, whole: bool) -> int:
    """Return the smallest width of a column that breaks no word."""
    widest = max(map(len, column))
    words = [len(word) for cell in column for word in cell.split()]
    return widest if whole else max([min(widest, _NARROW), *words])


def _record(names: Sequence[str], row: Sequence[str], width: int) -> Iterator[str]:
    """Yield a row as lines: its first cell, each sentence, and what is short together."""
    yield row[0] if len(row[0]) <= width else row[0].replace(",", ", ")
    rest = [(name, cell) for name, cell in zip(names[1:], row[1:], strict=True) if cell]
    yield from (f"  {name}: {cell}" for name, cell in rest if len(cell) > _NARROW)
    short = [f"{name}: {cell}" for name, cell in rest if len(cell) <= _NARROW]
    if short:
        yield f"  {', '.join(each.replace(' ', NO_BREAK) for each in short)}"


def _print_table(
    names: Sequence[str],
    cells: Sequence[Sequence[str]],
    least: Sequence[int],
    *,
    numbers: bool,
    width: int,
) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False)
    for index, name in enumerate(names):
        table.add_column(
            name,
            justify="right" if numbers and index else "left",
            no_wrap=numbers or not index,
            min_width=least[index],
            overflow="fold",
        )
    for row in cells:
        table.add_row(*row)
    console = Console(width=width, highlight=False)
    with console.capture() as captured:
        console.print(table, markup=False)
    typer.echo("\n".join(line.rstrip() for line in captured.get().splitlines()))
