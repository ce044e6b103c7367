"""Lines that fit a terminal: how wide it is, and breaks at spaces alone."""

from __future__ import annotations

import os
import re
import textwrap
from collections.abc import Iterator
from typing import TextIO

NO_BREAK = "\u00a0"
"""A space in a text at which its line is not broken; it is printed as any other."""

_LABEL = re.compile(r"( *[^\s:](?:[^:]*?[^\s:])? {2,})\S")
_GAP = re.compile(r"(?<=\S) {3,}")


def width_of(stream: TextIO) -> int | None:
    """Return the columns that lines of a stream may have.

    They are the variable COLUMNS where it is set, else those of the terminal; None where the stream
    is no terminal, so that other programs read whole lines. Where LINES is set beside COLUMNS, both
    are the size of a terminal that this process was started from: the readline library sets them,
    unseen, in every program that imports it. They say nothing about a stream that goes elsewhere.
    """
    try:
        terminal = os.get_terminal_size(stream.fileno()).columns or None
    except (OSError, ValueError, AttributeError):
        terminal = None
    said = os.environ.get("COLUMNS", "")
    if said.isdecimal() and int(said) > 0 and (terminal or "LINES" not in os.environ):
        return int(said)
    return terminal


def wrapped(text: str, width: int | None) -> list[str]:
    """Break the lines of a text where they are too long, at spaces only.

    A line goes on below its value where it is `label   value`, else a little further to the right
    than it began. A word that is longer than a line stays whole.

    Args:
      text: of one or more lines.
      width: columns; None breaks nothing.
    """
    pieces = [piece for line in text.split("\n") for piece in _pieces(line, width)]
    return [piece.replace(NO_BREAK, " ") for piece in pieces]


def _pieces(line: str, width: int | None) -> Iterator[str]:
    if width is None or len(line) <= width:
        yield line
        return
    begin = len(line) - len(line.lstrip())
    label = _LABEL.match(line)
    if label and len(label[1]) <= width // 2 and _fits(line, label.end(1), width):
        yield from _fill(line, width, "", " " * len(label[1]))
        return
    further = " " * min(begin + 2, width // 4)
    first, *rest = _GAP.split(line)
    yield from _fill(first, width, "", further)
    for part in rest:
        yield from _fill(part, width, further, further)


def _fits(line: str, column: int, width: int) -> bool:
    """Whether every word from a column on has room between it and the end of a line."""
    return max(map(len, line[column:].split(" "))) <= width - column


def _fill(text: str, width: int, first: str, others: str) -> list[str]:
    return textwrap.wrap(
        text,
        width,
        initial_indent=first,
        subsequent_indent=others,
        break_long_words=False,
        break_on_hyphens=False,
    ) or [""]
