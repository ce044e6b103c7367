"""The table of a sweep: one line for all runs that differ in nothing but the seed.

mean ± sample deviation over the seeds of the headline metric and seconds
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedpeft.core.metrics import metric_in
from fedpeft.runs.records import bytes_of_a_message


@dataclass(frozen=True)
class TableLine:
    """One line of the table; bytes are as encoded.

    Attributes:
      label: the method, and other settings of the row.
      finished: number of finished runs.
      runs: number of runs.
      metric: name of the headline metric.
      mean: mean of the metric over the finished runs; NaN where there is none.
      deviation: sample deviation of the metric; NaN with fewer than two runs.
      trained: number of trainable parameters.
      payload_bytes: payload of one client, one way, in theory.
      up_per_turn: bytes from one client in one round.
      down_per_turn: bytes to one client in one round.
      total_bytes: both ways, all clients and rounds; the mean over the runs.
      seconds: wall time of a run; the mean over the runs.
    """

    label: str
    finished: int
    runs: int
    metric: str
    mean: float
    deviation: float
    trained: int
    payload_bytes: int
    up_per_turn: float
    down_per_turn: float
    total_bytes: float
    seconds: float


def table_lines(results: Sequence[Mapping[str, Any]]) -> list[TableLine]:
    """Group a sweep's results, as in `sweep.json`, by all overrides except the seed."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for result in results:
        groups.setdefault(_label(result), []).append(result)
    return [_line(label, members) for label, members in groups.items()]


def headline_of(summary: Mapping[str, Any]) -> str:
    """Return the name of the metric by which a run is judged, from its summary."""
    return str(summary.get("metric") or metric_in([summary]).name)


def _label(result: Mapping[str, Any]) -> str:
    parts = [
        f"{key.rpartition('.')[2]} {value}"
        for key, value in result["overrides"].items()
        if key not in ("tuning.method", "seed")
    ]
    return ", ".join([str(result["method"]), *parts])


def _line(label: str, members: Sequence[Mapping[str, Any]]) -> TableLine:
    done = [member for member in members if "delta_digest" in member]
    first: Mapping[str, Any] = done[0] if done else {}
    metric = headline_of(first)
    scores = [float(member[metric]) for member in done]
    sizes = [bytes_of_a_message(member) for member in done]
    return TableLine(
        label=label,
        finished=len(done),
        runs=len(members),
        metric=metric,
        mean=_mean(scores),
        deviation=statistics.stdev(scores) if len(scores) > 1 else math.nan,
        trained=int(first.get("trainable_parameters", 0)),
        payload_bytes=int(first.get("payload_bytes", 0)),
        up_per_turn=_mean([up for _, up in sizes]),
        down_per_turn=_mean([down for down, _ in sizes]),
        total_bytes=_mean([m["bytes_up"] + m["bytes_down"] for m in done]),
        seconds=_mean([m["seconds"] for m in done]),
    )


def _mean(values: Sequence[float]) -> float:
    return statistics.fmean(values) if values else math.nan
