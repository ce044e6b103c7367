"""Callbacks: what else happens when a run starts, after each round, and at its end.

    on_start {experiment, run_dir, round} ──> on_round(record) ... ──> on_end(summary)
                                              True ends the run after this round

They see what the run folder records, and nothing else. They run where the rounds are driven: in
this process, or on the server of a deployment.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

__all__ = ["Callback", "ended", "started", "stops"]

Facts = Mapping[str, object]
"""What JSON can hold, by name."""


def _ignore(facts: Facts) -> None:
    return None


@dataclass(frozen=True)
class Callback:
    """Functions to be called during a run; each defaults to doing nothing.

    Attributes:
      on_start: before the first round that this process runs, with `experiment` (the resolved
        file as a table), `run_dir` (None in memory) and `round` (rounds done before).
      on_round: after each round, when its checkpoint is on the disk, with the line of
        `rounds.jsonl`. True ends the run: its summary then says `stopped = "callback"`, and
        `--resume` goes on.
      on_end: with the summary, as in `summary.json`.
    """

    on_start: Callable[[Facts], None] = _ignore
    on_round: Callable[[Facts], bool | None] = _ignore
    on_end: Callable[[Facts], None] = _ignore


def started(callbacks: Iterable[Callback], facts: Facts) -> None:
    """Tell all callbacks that a run starts."""
    for each in callbacks:
        each.on_start(facts)


def stops(callbacks: Iterable[Callback], record: Facts) -> bool:
    """Tell all callbacks of a round; whether one of them ends the run."""
    return any([each.on_round(record) is True for each in callbacks])


def ended(callbacks: Iterable[Callback], summary: Facts) -> None:
    """Tell all callbacks that a run has ended."""
    for each in callbacks:
        each.on_end(summary)
