"""Progress of long work: a bar on a terminal, plain lines elsewhere; metric, bytes, time left."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TextIO, TypeAlias

from fedpeft.core.terminal import NO_BREAK, wrapped
from fedpeft.core.text import byte_words
from fedpeft.runs.records import RoundDone

_BAR = 24

Report: TypeAlias = Callable[[str, RoundDone | str], None]
"""Called with the name of a run, and its latest round or a text about its end."""


def progress_line(done: RoundDone) -> str:
    """Return the progress of a run as a line: last metrics, bytes of all rounds, time left."""
    so_far = done.totals
    sent = byte_words(so_far.bytes_up + so_far.bytes_down)
    left = f"{time_words(done.seconds_left)} left" if so_far.rounds < done.rounds else "done"
    parts = [f"round {so_far.rounds}/{done.rounds}", *_metrics(done), f"{sent} sent", left]
    return ", ".join(parts)


def time_words(seconds: float) -> str:
    """Write a duration: `0.4 s`, `42 s`, `3 min 5 s`, `2 h 10 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


@contextlib.contextmanager
def show_progress(stream: TextIO) -> Iterator[Report]:
    """Show the progress of one or more runs on a stream inside the block."""
    if stream.isatty():
        with _bars(stream) as report:
            yield report
    else:
        yield lambda name, event: _print_line(stream, name, event)


def _metrics(done: RoundDone) -> list[str]:
    last, headline = done.totals.last, done.totals.metric.name
    names = dict.fromkeys((headline, "loss"))
    return [f"{name} {last[name]:.4g}" for name in names if last.get(name) is not None]


def _print_line(stream: TextIO, name: str, event: RoundDone | str) -> None:
    text = progress_line(event) if isinstance(event, RoundDone) else event
    print(f"{name}: {text}" if name else text, file=stream, flush=True)


@contextlib.contextmanager
def _bars(stream: TextIO) -> Iterator[Report]:
    """Show the runs that go on in the last lines of a terminal, what has ended above them."""
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    console = Console(file=stream, highlight=False)
    running: dict[str, RoundDone] = {}

    def shown() -> Text:
        lines = (_bar_lines(name, done, console.width) for name, done in running.items())
        return Text("\n".join(line for each in lines for line in each))

    with Live(console=console, auto_refresh=False) as live:

        def report(name: str, event: RoundDone | str) -> None:
            if isinstance(event, RoundDone):
                running[name] = event
            else:
                running.pop(name, None)
                live.update(shown())
                text = f"{name}: {event}" if name else event
                console.print(Text("\n".join(wrapped(text, console.width))))
            live.update(shown(), refresh=True)

        yield report


def _bar_lines(name: str, done: RoundDone, width: int) -> list[str]:
    """Return the name, a bar and the figures as a line; where it is too long, lines without bar."""
    text = progress_line(done)
    filled = _BAR * done.totals.rounds // max(1, done.rounds)
    line = f"{name} {'━' * filled}{'─' * (_BAR - filled)} {text}".strip()
    if len(line) <= width:
        return [line]
    whole = text.replace(" ", NO_BREAK).replace(f",{NO_BREAK}", ", ")  # a figure and its unit
    return wrapped(f"{name}: {whole}" if name else whole, width)
