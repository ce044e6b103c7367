"""What whoever watches a run is told after each round."""

from __future__ import annotations

from dataclasses import dataclass

from fedpeft.runs.records import Record, Totals

__all__ = ["RoundDone", "done_of"]


@dataclass(frozen=True)
class RoundDone:
    """What a watcher is told after each round.

    Attributes:
      record: the line of `rounds.jsonl`.
      totals: over all rounds so far, those before a resume included.
      rounds: how many rounds the run will have.
      seconds_left: an estimate from the rounds so far.
    """

    record: Record
    totals: Totals
    rounds: int
    seconds_left: float


def done_of(record: Record, so_far: Totals, rounds: int) -> RoundDone:
    """Say how far a run of `rounds` rounds is: its newest line, and the totals so far."""
    left = so_far.seconds / so_far.rounds * (rounds - so_far.rounds)
    return RoundDone(record, so_far, rounds, left)
