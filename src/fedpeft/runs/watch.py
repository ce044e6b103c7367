"""The progress of a run, reported after each round."""

from __future__ import annotations

from dataclasses import dataclass

from fedpeft.runs.records import Record, Totals

__all__ = ["RoundDone", "done_of"]


@dataclass(frozen=True)
class RoundDone:
    """The progress of a run after one of its rounds.

    Attributes:
      record: the line of `rounds.jsonl`.
      totals: over all rounds so far, those before a resume included.
      rounds: number of rounds of the whole run.
      seconds_left: an estimate from the rounds so far.
    """

    record: Record
    totals: Totals
    rounds: int
    seconds_left: float


def done_of(record: Record, so_far: Totals, rounds: int) -> RoundDone:
    """Make the report of a run of `rounds` rounds, with an estimate of the time left."""
    left = so_far.seconds / so_far.rounds * (rounds - so_far.rounds)
    return RoundDone(record, so_far, rounds, left)
