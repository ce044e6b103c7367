"""`rounds.jsonl`: one line a round, always.

    {"round": 1, "cohort": [...], "failures": {}, "metrics": {...}, "update_norm": ..., ...}

A line is written to disk before its checkpoint. A crash between the two leaves an extra line, or
half a line: resuming cuts the file back to the checkpoint's round.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from fedpeft.core.errors import RunFolderError
from fedpeft.core.metrics import Metric, metric_in
from fedpeft.core.storage import about
from fedpeft.core.strict_json import to_json
from fedpeft.runs.files import write_text

if TYPE_CHECKING:
    from fedpeft.rounds.round_plan import RoundRecord


Record: TypeAlias = dict[str, object]
"""One line of `rounds.jsonl`."""

_OF_CLIENTS = ("client_metrics", "client_metrics_by_class")
_NOT_PRIVATE = {"note": "not private: true figures, for whoever runs a simulation; do not publish"}


@dataclass(frozen=True)
class Totals:
    """Sums and extremes over the rounds so far.

    Attributes:
      rounds: number of rounds.
      bytes_up: from all clients, as encoded.
      bytes_down: to all clients, as encoded.
      messages_up: number of replies; where cohorts are secret, the expected number.
      messages_down: number of broadcasts, likewise.
      seconds: wall time of rounds and evaluations.
      last: the metrics of the last evaluation, None where a figure is not finite; {} before the
        first.
      metric: the headline metric.
      best: its best value so far; None before the first evaluation.
    """

    rounds: int
    bytes_up: int
    bytes_down: int
    messages_up: int
    messages_down: int
    seconds: float
    last: Mapping[str, float | None]
    metric: Metric
    best: float | None


@dataclass(frozen=True)
class RoundDone:
    """The progress of a run after one of its rounds.

    Attributes:
      record: the line of `rounds.jsonl`.
      totals: over all rounds so far, those before a resume included.
      rounds: number of rounds of the whole run.
    """

    record: Record
    totals: Totals
    rounds: int

    @property
    def seconds_left(self) -> float:
        """An estimate from the rounds so far."""
        return self.totals.seconds / self.totals.rounds * (self.rounds - self.totals.rounds)


def record_of(record: RoundRecord, metrics: Mapping[str, float], seconds: float = 0.0) -> Record:
    """Make a line from a round and its evaluation.

    Args:
      record: of the round.
      metrics: of the evaluation; {} where there was none.
      seconds: wall time of the evaluation; added to the round's.
    """
    return {
        "round": record.round,
        "cohort": list(record.cohort),
        "failures": dict(record.failures),
        "metrics": {**record.metrics, **metrics},
        "update_norm": record.update_norm,
        "bytes_down": record.bytes_down,
        "bytes_up": record.bytes_up,
        "messages_down": record.messages_down,
        "messages_up": record.messages_up,
        "seconds": round(record.seconds + seconds, 6),
        **record.simulation,
    }


def append_record(file: Path, record: Record) -> None:
    """Add a line and sync it to disk."""
    with about(file), file.open("a", encoding="utf-8") as opened:
        opened.write(to_json(record) + "\n")
        opened.flush()
        os.fsync(opened.fileno())


def read_records(file: Path, *, whole: bool = False) -> list[Record]:
    """Read all whole lines; a torn last line is left out, a missing file has none.

    Args:
      file: `rounds.jsonl` of a run folder.
      whole: whether the run has finished, so that a torn last line is an error too.

    Raises:
      RunFolderError: if a line in the middle cannot be read or is not the next round.
    """
    if not file.exists():
        return []
    lines = file.read_bytes().splitlines()
    records: list[Record] = []
    for number, line in enumerate(lines, 1):
        record = _parse(line)
        if record is None:
            if number == len(lines) and not whole:
                return records
            raise _wrong(file, number, "it is not one whole JSON object")
        if record["round"] != len(records) + 1:
            raise _wrong(file, number, f"found round {record['round']}, expected {number}")
        records.append(record)
    return records


def cut_records(file: Path, rounds: int) -> list[Record]:
    """Cut the file to the lines of the first `rounds` rounds, and return them.

    Raises:
      RunFolderError: if there are fewer.
    """
    records = read_records(file)
    if len(records) < rounds:
        raise RunFolderError(
            f"{file}: found {len(records)} rounds, the newest checkpoint is of round {rounds}. "
            "Lines are missing: put the file back as it was, or start again in another folder"
        )
    kept = records[:rounds]
    text = "".join(to_json(record) + "\n" for record in kept)
    if file.exists() and file.read_bytes() != text.encode():
        write_text(file, text)
    return kept


def drop_evaluation(file: Path, records: list[Record], metric: Metric) -> list[Record]:
    """Take the evaluation out of the last line: it was of a last round, and more rounds follow.

    Args:
      file: `rounds.jsonl` of a run folder.
      records: its lines.
      metric: the headline metric.
    """
    if not records or "loss" not in _metrics(records[-1]):
        return records
    kept = {name: each for name, each in records[-1].items() if name not in _OF_CLIENTS}
    figures = _metrics(kept)
    kept["metrics"] = {n: figures[n] for n in figures if n not in ("loss", metric.name)}
    whole = [*records[:-1], kept]
    write_text(file, "".join(to_json(record) + "\n" for record in whole))
    return whole


def cut_diagnostics(file: Path, rounds: int) -> None:
    """Cut `diagnostics.jsonl` to its warning and the lines of the first `rounds` rounds.

    Only its owner may read it: it holds true figures of a private run.
    """
    lines = file.read_text("utf-8").splitlines() if file.exists() else []
    whole = [line for line in lines[1:] if line.endswith("}")]
    kept = [line for line in whole if json.loads(line)["round"] <= rounds]
    write_text(file, "\n".join([to_json(_NOT_PRIVATE), *kept]) + "\n", mode=0o600)


def brief(record: Record) -> Record:
    """Return the keys of a line that `totals` needs, without those that grow with the cohort."""
    kept = ("round", "metrics", "bytes_up", "bytes_down", "seconds")
    down, up = messages_of(record)
    return {name: record[name] for name in kept} | {"messages_down": down, "messages_up": up}


def messages_of(record: Mapping[str, object]) -> tuple[int, int]:
    """Return the numbers (down, up) of messages in a round; expected ones where cohorts are secret.

    Lines of earlier versions lack them: all of the cohort got a broadcast, and failures no reply.
    """
    if record.get("messages_up") is not None:
        return int(str(record["messages_down"])), int(str(record["messages_up"]))
    asked, failed = (_count(record.get(key)) for key in ("cohort", "failures"))
    return asked, asked - failed


def _count(found: object) -> int:
    """Return the length of names, or the number that stands for them."""
    return len(found) if isinstance(found, list | Mapping) else int(float(str(found or 0)))


def bytes_of_a_message(summary: Mapping[str, object]) -> tuple[float, float]:
    """Return the mean bytes (down, up) of a message of a run, from its summary."""
    planned = int(str(summary["rounds"])) * int(str(summary["cohort"]))  # earlier versions
    down, up = (
        float(str(summary[f"bytes_{way}"]))
        / max(1.0, float(str(summary.get(f"messages_{way}", planned))))
        for way in ("down", "up")
    )
    return down, up


def totals(records: list[Record], metric: Metric | None = None) -> Totals:
    """Sum up the rounds so far.

    Args:
      records: whole lines, or what `brief` keeps of them.
      metric: the headline metric; None: found from the figures by `metric_in`.
    """
    evaluated = [found for record in records if "loss" in (found := _metrics(record))]
    numbers = [{k: v for k, v in each.items() if v is not None} for each in evaluated]
    metric = metric or metric_in(numbers)
    return Totals(
        rounds=len(records),
        bytes_up=sum(int(str(record["bytes_up"])) for record in records),
        bytes_down=sum(int(str(record["bytes_down"])) for record in records),
        messages_up=sum(messages_of(record)[1] for record in records),
        messages_down=sum(messages_of(record)[0] for record in records),
        seconds=sum(float(str(record["seconds"])) for record in records),
        last=evaluated[-1] if evaluated else {},
        metric=metric,
        best=metric.best(each[metric.name] for each in numbers if metric.name in each),
    )


def _metrics(record: Record) -> dict[str, float | None]:
    found = record["metrics"]
    assert isinstance(found, dict)
    return {str(name): _number(value) for name, value in found.items() if _is_figure(value)}


def _is_figure(value: object) -> bool:
    return value is None or (isinstance(value, (int, float)) and not isinstance(value, bool))


def _number(value: float | None) -> float | None:
    return float(value) if value is not None and math.isfinite(value) else None


def _parse(line: bytes) -> Record | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) and "round" in record else None


def _wrong(file: Path, number: int, problem: str) -> RunFolderError:
    return RunFolderError(
        f"{file}, line {number}: {problem}. Nothing was changed; put the file back as it was, or "
        "start again in another folder"
    )
