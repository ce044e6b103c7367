"""The comparison table: one row for each group of runs, as numbers and as text.

mean ± sample deviation over seeds          bytes: B, MB = 10^6 B, MiB = 2^20 B
"""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from fedpeft.core.metrics import Metric
from fedpeft.core.text import byte_words
from fedpeft.results.runs import Group, Panel, Run
from fedpeft.runs.records import messages_of


@dataclass(frozen=True)
class Spread:
    """A figure over seeds.

    Attributes:
      mean: the mean over all seeds.
      std: sample standard deviation (n - 1); None for one seed.
      low: the smallest value.
      high: the largest value.
      count: the number of seeds.
    """

    mean: float
    std: float | None
    low: float = field(default=math.nan, compare=False)
    high: float = field(default=math.nan, compare=False)
    count: int = field(default=1, compare=False)

    @staticmethod
    def of(values: Sequence[float]) -> Spread | None:
        """Summarise values of different seeds; None for no values."""
        if not values:
            return None
        std = statistics.stdev(values) if len(values) > 1 else None
        return Spread(statistics.fmean(values), std, min(values), max(values), len(values))

    def interval(self, metric: Metric) -> tuple[float, float] | None:
        """Return the 95 % interval of the mean over seeds, by Student's t; None for one seed.

        It is clipped to the range of the metric.
        """
        if self.std is None:
            return None
        from scipy.special import stdtrit

        half = float(stdtrit(self.count - 1, 0.975)) * self.std / math.sqrt(self.count)
        return metric.bounded(self.mean - half), metric.bounded(self.mean + half)


@dataclass(frozen=True)
class Row:
    """One row of the comparison table; None where a figure is not known.

    Attributes:
      label: label of the group.
      status: "", or why the row is not complete.
      last: the metric after the last round (the headline).
      best: the metric after the best round.
      best_round: the best round of the first seed.
      trained: number of trained parameters.
      share: trained share of all parameters, 0 to 1.
      payload: theoretical bytes of one message, one client, one way.
      encoded_up: mean encoded bytes of one reply.
      encoded_down: mean encoded bytes of one broadcast to one client.
      total_bytes: encoded bytes, both ways, all clients and rounds.
      bytes_up: encoded bytes of all replies.
      bytes_down: encoded bytes of all broadcasts.
      seconds: wall time of a run.
      epsilon: privacy spent; None without differential privacy.
      seeds: seeds of the counted runs.
      guarantee: the delta and the unit that epsilon is for, as text; "" without epsilon.
      privacy_note: the runs' note on their privacy; "" without one.
    """

    label: str
    status: str
    last: Spread | None
    best: Spread | None
    best_round: int | None
    trained: int | None
    share: float | None
    payload: int | None
    encoded_up: float | None
    encoded_down: float | None
    total_bytes: Spread | None
    seconds: Spread | None
    epsilon: float | None
    seeds: tuple[int, ...]
    bytes_up: Spread | None = None
    bytes_down: Spread | None = None
    privacy_note: str = ""
    guarantee: str = ""


def row_of(group: Group) -> Row:
    """Compute the figures of a group, over its counted runs."""
    runs = group.counted
    curves = [run.curve() for run in runs]
    sign = group.runs[0].metric.sign
    bests = [max(curve, key=lambda point: sign * point[2]) for curve in curves if curve]
    trained, total = (_count_of(group, f"{kind}_parameters") for kind in ("trainable", "total"))
    return Row(
        label=group.label,
        status=_status(group),
        last=Spread.of([curve[-1][2] for curve in curves if curve]),
        best=Spread.of([point[2] for point in bests]),
        best_round=bests[0][0] if bests else None,
        trained=trained,
        share=trained / total if trained and total else None,
        payload=_count_of(group, "payload_bytes"),
        encoded_up=_per_message(runs, "bytes_up"),
        encoded_down=_per_message(runs, "bytes_down"),
        total_bytes=_sent(runs, "bytes_up", "bytes_down"),
        seconds=Spread.of([_seconds(run) for run in runs if run.rounds]),
        epsilon=_summary_of(group, "epsilon"),
        seeds=tuple(run.seed for run in runs),
        bytes_up=_sent(runs, "bytes_up"),
        bytes_down=_sent(runs, "bytes_down"),
        privacy_note=group.privacy_note,
        guarantee=_guarantee(group),
    )


def row_of_run(run: Run) -> Row:
    """Compute the figures of one run."""
    return row_of(Group(run.method, (run,)))


def _count_of(group: Group, key: str) -> int | None:
    value = _summary_of(group, key)
    return None if value is None else int(value)


def _summary_of(group: Group, key: str) -> float | None:
    found = (run.summary.get(key) for run in group.runs if run.summary)
    return next((value for value in found if value is not None), None)


def _guarantee(group: Group) -> str:
    """Return the delta and the unit of a group's epsilon, such as `δ = 0.001, one client`."""
    if _summary_of(group, "epsilon") is None:
        return ""
    found = [(run.summary or {}).get("privacy") for run in group.runs]
    privacy = next((each for each in found if isinstance(each, Mapping)), {})
    note, delta = privacy.get("note", ""), privacy.get("delta")
    unit = privacy.get("unit") or ("example" if "example" in note else "client")
    return f"δ = {delta:g}, one {unit}" if delta else f"a δ that is not recorded, one {unit}"


def _status(group: Group) -> str:
    """Return why a group is not complete: rounds are missing, or a run was stopped early."""
    unfinished = [run for run in group.counted if run.summary is None]
    if unfinished:
        done = min(len(run.rounds) for run in unfinished)
        return f"unfinished: {done} of {unfinished[0].planned_rounds} rounds"
    reasons = [run.summary.get("stopped") for run in group.runs if run.summary]
    early = [reason for reason in reasons if reason not in (None, False, "rounds")]
    return f"stopped: {early[0]}" if early else ""


def _per_message(runs: Sequence[Run], key: str) -> float | None:
    """Return the mean bytes of a message."""
    records = [record for run in runs for record in run.rounds]
    messages = sum(messages_of(record)[key == "bytes_up"] for record in records)
    total = sum(int(record.get(key, 0)) for record in records)
    return total / messages if messages > 0 else None


def _sent(runs: Sequence[Run], *keys: str) -> Spread | None:
    """Return the bytes of a run under some keys of its records, all rounds added up."""
    totals = [
        sum(int(r.get(key, 0)) for r in run.rounds for key in keys) for run in runs if run.rounds
    ]
    return Spread.of([float(total) for total in totals])


def _seconds(run: Run) -> float:
    own = (run.summary or {}).get("seconds")
    return float(own if own is not None else sum(float(r.get("seconds", 0)) for r in run.rounds))


_COLUMNS = (
    *("data", "evaluated_on", "metric", "configuration", "seeds"),
    *("last_mean", "last_std", "last_low", "last_high", "last_min", "last_max"),
    *("best_mean", "best_std"),
    *("trainable_parameters", "trainable_share", "payload_bytes"),
    *("encoded_bytes_up", "encoded_bytes_down", "total_bytes_both_ways"),
    *("bytes_up", "bytes_down", "seconds", "epsilon", "guarantee", "privacy", "status"),
)


def as_csv(panels: Sequence[Panel]) -> str:
    """Return all rows of all panels as comma-separated values, with full precision."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for panel in panels:
        for group in panel.groups:
            writer.writerow(_line(panel, row_of(group)))
    return out.getvalue()


def _line(panel: Panel, row: Row) -> list[object]:
    interval = (row.last.interval(panel.metric) if row.last else None) or (None, None)
    ends = (row.last.low, row.last.high) if row.last else (None, None)
    means = (row.total_bytes, row.bytes_up, row.bytes_down, row.seconds)
    seeds = " ".join(map(str, row.seeds))
    return [
        *(panel.source, panel.evaluated_on, panel.metric.name, row.label, seeds),
        *(*_both(row.last), *interval, *ends, *_both(row.best)),
        *(row.trained, row.share, row.payload, row.encoded_up, row.encoded_down),
        *map(_mean, means),
        *(row.epsilon, row.guarantee, row.privacy_note, row.status),
    ]


def _both(spread: Spread | None) -> tuple[float | None, float | None]:
    return (spread.mean, spread.std) if spread else (None, None)


def metric_text(spread: Spread | None, metric: Metric) -> str:
    """Return a metric as text: accuracy in percent, perplexity as it is."""
    if spread is None:
        return "–"
    deviation = "" if spread.std is None else f" ± {metric.text(spread.std)}"
    return f"{metric.text(spread.mean)}{deviation}{metric.unit}"


def interval_text(ends: tuple[float, float] | None, metric: Metric) -> str:
    """Return an interval of a metric as text."""
    if ends is None or any(map(math.isnan, ends)):
        return "–"
    return f"{metric.text(ends[0])} to {metric.text(ends[1])}{metric.unit}"


def epsilon_text(row: Row) -> str:
    """Return epsilon as text, with the note on what it is worth."""
    spent = "none" if row.epsilon is None else f"{row.epsilon:.4g} at {row.guarantee}"
    return f"{spent} ({row.privacy_note})" if row.privacy_note else spent


def count_text(count: float | None) -> str:
    """Return a whole number with thousands separators."""
    return "–" if count is None else f"{round(count):,}"


def exact_bytes(count: float | None) -> str:
    """Return bytes as a whole number with thousands separators."""
    return "–" if count is None else f"{count_text(count)} B"


def bytes_text(count: float | None) -> str:
    """Return bytes in MB and MiB."""
    if count is None:
        return "–"
    return f"{_digits(count / 1e6)} MB · {_digits(count / 2**20)} MiB"


def seconds_text(seconds: float | None) -> str:
    """Return a duration in seconds, minutes or hours."""
    if seconds is None:
        return "–"
    if seconds < 100:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _digits(value: float) -> str:
    """Return at least three significant digits, without an exponent."""
    if value >= 100 or value == 0:
        return f"{value:,.1f}"
    return f"{value:.{max(2, 2 - math.floor(math.log10(value)))}f}"


def _mean(spread: Spread | None) -> float | None:
    return spread.mean if spread else None


TEXTS: Mapping[str, Callable[..., object]] = {
    "mean": _mean,
    **{
        each.__name__: each
        for each in (
            *(row_of, row_of_run, metric_text, interval_text, epsilon_text),
            *(count_text, exact_bytes, bytes_text, byte_words, seconds_text),
        )
    },
}
"""The functions that templates format figures with, by name."""
