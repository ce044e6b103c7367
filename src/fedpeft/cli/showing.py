"""`show`: examples as the model gets them, with what is learnt of them."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import typer

from fedpeft.cli.printing import show
from fedpeft.experiment.read import read_experiment
from fedpeft.plan.shown import Part, ShownData, ShownExample, show_examples

_OPEN, _CLOSE = "⟦", "⟧"


def show_command(file: Path | None, sets: Sequence[str], count: int, *, as_json: bool) -> None:
    """Print the first examples of an experiment's clients."""
    found = show_examples(read_experiment(file, sets), count)
    if as_json:
        show(found.as_json(), (), as_json=True)
        return
    coloured = has_colours()
    for line in _lines(found, coloured=coloured):
        typer.echo(line, color=coloured)


def has_colours() -> bool:
    """Whether standard output shows colours: a terminal does unless NO_COLOR is set."""
    if os.environ.get("NO_COLOR"):
        return False
    forced = bool(os.environ.get("FORCE_COLOR"))
    return forced or (sys.stdout.isatty() and os.environ.get("TERM") != "dumb")


def _lines(found: ShownData, *, coloured: bool) -> Iterator[str]:
    rows = "rows of packed examples" if found.packed else "training examples"
    yield f"{found.source}: {found.num_rows:,} {rows} of {found.num_clients:,} clients"
    if any(part.learnt for each in found.examples for part in each.parts):
        how = [_styled("read", learnt=False, coloured=coloured)]
        how.append(_styled("learnt", learnt=True, coloured=coloured))
        yield f"what is {how[0]}, and what is {how[1]}"
    for number, example in enumerate(found.examples, 1):
        yield ""
        yield f"example {number}, row {example.row} of {example.client}: {_what(example)}"
        if example.parts:
            yield "".join(_part(part, coloured=coloured) for part in example.parts)


def _what(example: ShownExample) -> str:
    sizes = [f"{name} {' x '.join(map(str, shape))}" for name, shape in example.shapes.items()]
    if example.parts:
        sizes.append(f"{example.num_tokens} tokens")
    if example.label is None and example.parts:
        sizes.append(f"{example.num_learnt} learnt")
    if example.label is not None:
        sizes.append(f"class {example.label!r}")
    return ", ".join(sizes)


def _part(part: Part, *, coloured: bool) -> str:
    return _styled(_printable(part.text), learnt=part.learnt, coloured=coloured)


def _styled(text: str, *, learnt: bool, coloured: bool) -> str:
    if coloured:
        return typer.style(text, fg="green", bold=True) if learnt else typer.style(text, dim=True)
    return f"{_OPEN}{text}{_CLOSE}" if learnt else text


def _printable(text: str) -> str:
    """Return foreign text without characters that a terminal would obey."""
    keep = "\n\t"
    return "".join(c if c.isprintable() or c in keep else ascii(c)[1:-1] for c in text)
