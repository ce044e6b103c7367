"""Callbacks: functions that are called when a run starts, after each round, and at its end.

    on_start {experiment, run_dir, round} ──> on_round(record) ... ──> on_end(summary)
                                              True ends the run after this round

They get what the run folder records, and nothing else. They are called in the process that drives
the rounds: this one, or the server of a deployment.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

Facts = Mapping[str, object]
"""Values that JSON can hold, by name."""


def _ignore(facts: Facts) -> None:
    return None


@dataclass(frozen=True)
class Callback:
    """Functions to be called during a run; each defaults to doing nothing.

    Attributes:
      on_start: called before the first round of this process, with `experiment` (the resolved
        file as a table), `run_dir` (None in memory) and `round` (the number of rounds done).
      on_round: called after each round, when its checkpoint is on the disk, with the line of
        `rounds.jsonl`. True ends the run: its summary then has `stopped = "callback"`, and
        `--resume` continues it.
      on_end: called with the summary, as in `summary.json`.

    Example:
      >>> third = Callback(on_round=lambda line: line["round"] == 3)
      >>> third.on_round({"round": 2}), third.on_round({"round": 3})
      (False, True)
    """

    on_start: Callable[[Facts], None] = _ignore
    on_round: Callable[[Facts], bool | None] = _ignore
    on_end: Callable[[Facts], None] = _ignore


def started(callbacks: Iterable[Callback], facts: Facts) -> None:
    """Call `on_start` of all callbacks."""
    for each in callbacks:
        each.on_start(facts)


def stops(callbacks: Iterable[Callback], record: Facts) -> bool:
    """Call `on_round` of all callbacks; return whether one of them ends the run."""
    return any([each.on_round(record) is True for each in callbacks])


def ended(callbacks: Iterable[Callback], summary: Facts) -> None:
    """Call `on_end` of all callbacks."""
    for each in callbacks:
        each.on_end(summary)
