"""A tracker of rounds: one line of a CSV file after each."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path

from fedpeft import Callback

__all__ = ["csv_log"]


def csv_log(*, path: str = "rounds.csv") -> Callback:
    """Append round, bytes and metrics to a CSV file.

    Args:
      path: of the file; it is made with a header where it does not exist.
    """

    def on_round(record: Mapping[str, object]) -> None:
        metrics = record["metrics"]
        assert isinstance(metrics, Mapping)
        row = {name: record[name] for name in ("round", "bytes_up", "bytes_down")} | dict(metrics)
        file = Path(path)
        new = not file.exists()
        with file.open("a", newline="", encoding="utf-8") as opened:
            table = csv.DictWriter(opened, list(row))
            if new:
                table.writeheader()
            table.writerow(row)

    return Callback(on_round=on_round)
