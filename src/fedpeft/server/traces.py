"""Availability traces: when each client is available, in simulated seconds.

    client,from,to           {"client": "client-3", "from": 0, "to": 3600}
    client-3,0,3600          one line for each interval           (csv, jsonl)
    client-3,7200,9000

An interval includes its beginning but not its end. A client without an interval never takes part.
With a period the trace repeats.

The bundled pattern `phones` is synthetic: a week of phones in three time zones, which are available
while they charge, mostly at night.

References:
  Bonawitz et al., Towards Federated Learning at Scale: System Design, MLSys 2019, Sec. 9 (phones
  are eligible while idle, charging and on a free network; four times as many at night as by day).
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist

from fedpeft.core.errors import ConfigError
from fedpeft.core.text import nearest
from fedpeft.server.clock import uniform

Interval = tuple[float, float]

DAY = 86_400.0
"""Seconds of a day."""

PHONES = "phones"
"""Name of the bundled pattern."""

_HOUR = 3_600.0
_NORMAL = NormalDist()


@dataclass(frozen=True)
class Trace:
    """When clients are available.

    Attributes:
      intervals: client -> (from, to) in simulated seconds, sorted and disjoint.
      period: seconds after which the trace repeats; None: it does not.
    """

    intervals: Mapping[str, tuple[Interval, ...]]
    period: float | None = None


def available_until(trace: Trace, client: str, time: float) -> float | None:
    """Return the end of a client's availability at `time`; None if it is away then."""
    for start, end in _around(trace, client, time):
        if start <= time < end:
            return end
    return None


def next_opening(trace: Trace, client: str, time: float) -> float | None:
    """Return the first time from `time` on when a client is available; None if there is none."""
    for start, end in _around(trace, client, time):
        if time < end:
            return max(start, time)
    return None


def read_trace(file: Path, clients: Sequence[str], period: float | None = None) -> Trace:
    """Read a trace; intervals of a client that touch or overlap become one.

    Args:
      file: `.csv` with a heading line, or `.jsonl`; columns or keys `client`, `from`, `to`.
      clients: names of all clients.
      period: seconds after which the trace repeats; no interval may end later. None: no repetition.

    Raises:
      ConfigError: if the file cannot be read, or names an unknown client.
    """
    found: dict[str, list[Interval]] = {}
    for line, row in _rows(file):
        client, interval = _interval(f"{file}, line {line}", row, period)
        if client not in clients:
            raise ConfigError(
                f"{file}, line {line}: there is no client {client!r}; {nearest(client, clients)}"
            )
        found.setdefault(client, []).append(interval)
    if not found:
        raise ConfigError(
            f"{file}: the trace has no interval, so no client would ever be available"
        )
    return Trace({client: _merged(intervals) for client, intervals in found.items()}, period)


def phones(clients: Iterable[str], *, seed: int) -> Trace:
    """Return a synthetic trace of phones, available while they charge; it repeats every week.

    A phone starts to charge around 22:30 of its own time (deviation 1.2 hours between phones, half
    an hour between nights), for about 7 hours (deviation 1.2). It is not charged on one night in
    ten, and charged for 40 more minutes on one day in three. Time zones are 0, 1 and 2 hours
    behind. Second 0 is a midnight.

    Args:
      clients: names of the clients.
      seed: the root seed of the run.
    """
    return Trace({client: _merged(_nights(client, seed)) for client in clients}, 7 * DAY)


def _nights(client: str, seed: int) -> Iterator[Interval]:
    """Yield the intervals of one phone's week, cut at the week's end."""

    def normal(mean: float, deviation: float, *path: str | int) -> float:
        return _NORMAL.inv_cdf(uniform(seed, "phones", client, *path)) * deviation + mean

    zone = math.floor(3 * uniform(seed, "phones", client, "zone"))
    bedtime, sleep = normal(22.5, 1.2, "bedtime") + zone, normal(7.0, 1.2, "sleep")
    for day in range(7):
        start = day * DAY + normal(bedtime, 0.5, "start", day) * _HOUR
        length = max(1.0, normal(sleep, 0.5, "length", day)) * _HOUR
        if uniform(seed, "phones", client, "forgotten", day) >= 0.1:
            yield from _wrapped(start, start + length)
        if uniform(seed, "phones", client, "snack", day) < 1 / 3:
            noon = day * DAY + normal(14.0, 3.0, "noon", day) * _HOUR
            yield from _wrapped(noon, noon + 2_400.0)


def _wrapped(start: float, end: float) -> Iterator[Interval]:
    """Split an interval at the end of the week; the rest continues at the week's beginning."""
    week = 7 * DAY
    begins = start % week
    ends = begins + end - start
    yield begins, min(ends, week)
    if ends > week:
        yield 0.0, ends - week


def _around(trace: Trace, client: str, time: float) -> Iterator[Interval]:
    """Yield a client's intervals around and after `time`; those that touch are joined."""
    own = trace.intervals.get(client, ())
    if trace.period is None:
        yield from own
        return
    turn = math.floor(time / trace.period) * trace.period
    spans = [(s + turn + shift, e + turn + shift) for shift in (0.0, trace.period) for s, e in own]
    yield from _merged(spans)


def _merged(intervals: Iterable[Interval]) -> tuple[Interval, ...]:
    """Sort intervals and join those that touch or overlap."""
    merged: list[Interval] = []
    for start, end in sorted(intervals):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((start, end))
    return tuple(merged)


def _rows(file: Path) -> Iterator[tuple[int, Mapping[str, object]]]:
    """Yield the rows of a file with their line numbers."""
    try:
        lines = file.read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"stability.trace: {file} cannot be read as text: {error}. Name a csv or jsonl "
            f"file, or {PHONES!r}"
        ) from error
    if file.suffix.lower() == ".csv":
        yield from enumerate(csv.DictReader(lines), 2)
        return
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ConfigError(f"{file}, line {number}: not JSON: {error}") from error
        if not isinstance(row, Mapping):
            raise ConfigError(f"{file}, line {number}: found no JSON object with client, from, to")
        yield number, row


def _interval(where: str, row: Mapping[str, object], period: float | None) -> tuple[str, Interval]:
    missing = [key for key in ("client", "from", "to") if row.get(key) in (None, "")]
    if missing:
        raise ConfigError(f"{where}: {', '.join(missing)} missing; needed are client, from, to")
    try:
        start, end = float(str(row["from"])), float(str(row["to"]))
    except ValueError as error:
        raise ConfigError(f"{where}: from and to are seconds: {error}") from error
    if not 0 <= start < end < math.inf:
        raise ConfigError(f"{where}: found {start} to {end}; allowed is 0 <= from < to, in seconds")
    if period is not None and end > period:
        raise ConfigError(
            f"{where}: ends at {end}, after stability.trace_period = {period}; cut the interval, "
            "or raise the period"
        )
    return str(row["client"]), (start, end)
