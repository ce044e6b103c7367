"""`fedpeft status`: the state of a run, from the files of its folder alone.

    experiment.toml + rounds.jsonl + summary.json  ->  rounds, accuracy, bytes, epsilon
    sites.json (a deployment)                      ->  sites: last contact, turns, bytes, failures
    .fedpeft.lock                                  ->  whether a process is running it

It only reads, and works while a run writes.
"""

from __future__ import annotations

import calendar
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedpeft.experiment.privacy import PRIVACY_MODES
from fedpeft.runs.folder import RunFolder, read_summary, recorded_metric, stored_experiment
from fedpeft.runs.ledger import read_ledger
from fedpeft.runs.lock import holder
from fedpeft.runs.records import read_records, totals

_TIME = "%Y-%m-%dT%H:%M:%SZ"


def read_status(path: Path, *, now: float | None = None) -> dict[str, Any]:
    """Return the state of a run.

    Args:
      path: its folder.
      now: seconds since 1970; for tests.

    Returns:
      texts and figures, as `fedpeft status --json` prints them. `state` is `finished`, `running` or
      `stopped`: unfinished, and no process is running it.

    Raises:
      RunFolderError: if it is not a run folder, or a file in it cannot be read.
    """
    folder = RunFolder(path)
    experiment = stored_experiment(folder)
    records = read_records(folder.rounds)
    so_far = totals(records, recorded_metric(folder))
    summary = read_summary(folder) if folder.summary.exists() else None
    process = holder(path)
    done = summary is not None and int(str(summary["rounds"])) == so_far.rounds
    ledger = read_ledger(path) or {"sites": {}, "refused": {}, "names": []}
    last = records[-1] if records else {}
    return {
        "run_dir": str(path),
        "name": experiment.name,
        "engine": experiment.engine.name,
        "method": experiment.tuning.method,
        "state": "running" if process else "finished" if done else "stopped",
        "process": process,
        "round": so_far.rounds,
        "rounds": experiment.federation.rounds,
        "metrics": dict(so_far.last),
        "metric": so_far.metric.name,
        f"best_{so_far.metric.name}": so_far.best,
        "epsilon": last.get("epsilon"),
        "privacy_delta": experiment.privacy.delta if "epsilon" in last else None,
        "privacy_unit": PRIVACY_MODES[experiment.privacy.mode].unit,
        "bytes_up": so_far.bytes_up,
        "bytes_down": so_far.bytes_down,
        "seconds": round(so_far.seconds, 3),
        "last_cohort": last.get("cohort"),
        "last_failures": last.get("failures"),
        "sites": [
            _site(name, ledger["sites"].get(name, {}), now or time.time())
            for name in sorted({*ledger["names"], *ledger["sites"]})
        ],
        "refused": dict(ledger["refused"]),
    }


def _site(name: str, row: Mapping[str, Any], now: float) -> dict[str, Any]:
    facts = row.get("facts", {})
    last = row.get("last")
    since = now - calendar.timegm(time.strptime(last, _TIME)) if last else None
    return {
        "name": name,
        "last_contact": last,
        "seconds_since": round(since) if since is not None else None,
        "examples": facts.get("examples"),
        "turns": row.get("turns", 0),
        "failures": row.get("failures", 0),
        "last_failure": row.get("last_failure"),
        "bytes_up": row.get("bytes_up", 0),
        "bytes_down": row.get("bytes_down", 0),
    }
