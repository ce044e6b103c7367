"""Checks of `[stability]` and `[federation.buffered]` beyond the schema."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from fedpeft.experiment.experiment import Experiment
from fedpeft.server.traces import PHONES

__all__ = ["stability_problems"]

_SUFFIXES = (".csv", ".jsonl")


def stability_problems(experiment: Experiment) -> Iterator[str]:
    """Yield every problem of the two tables, a line each."""
    yield from _buffered(experiment)
    yield from _trace(experiment)
    stability = experiment.stability
    given = stability.model_dump(exclude_defaults=True) if stability else {}
    if stability and stability.stragglers == "none" and "straggler_shape" in given:
        yield (
            "stability.straggler_shape: found without stability.stragglers; set that to "
            "'lognormal' or 'pareto'"
        )


def _buffered(experiment: Experiment) -> Iterator[str]:
    federation, stability = experiment.federation, experiment.stability
    options = federation.buffered
    if federation.mode == "synchronous":
        for key in sorted(options.model_dump(exclude_defaults=True)):
            yield (
                f"federation.buffered.{key}: found with federation.mode = 'synchronous'; it is for "
                "'buffered'"
            )
        return
    size = options.size or federation.clients_per_round
    if federation.min_replies > size:
        yield (
            f"federation.min_replies: found {federation.min_replies}; allowed is at most {size} "
            "(federation.buffered.size)"
        )
    if stability and stability.choose_from == "available":
        yield (
            "stability.choose_from: found with federation.mode = 'buffered', which always draws "
            "from available clients; leave the key out"
        )
    if stability and stability.over_selection != 1:
        yield (
            "stability.over_selection: found with federation.mode = 'buffered'; there the first "
            "replies always make the round: raise federation.buffered.concurrency instead"
        )


def _trace(experiment: Experiment) -> Iterator[str]:
    stability = experiment.stability
    if stability is None:
        return
    trace, of_file = stability.trace, ("trace_period", "trace_sha256")
    if trace in (None, PHONES):
        for key in of_file:
            if getattr(stability, key) is not None:
                yield f"stability.{key}: found with stability.trace = {trace!r}; it is for a file"
        if trace is None and stability.choose_from == "available":
            yield "stability.choose_from: found 'available' without stability.trace; name a trace"
    elif Path(trace).suffix.lower() not in _SUFFIXES:
        yield (
            f"stability.trace: found {trace!r}; allowed are a file that ends in "
            f"{' or '.join(_SUFFIXES)}, and {PHONES!r}"
        )
