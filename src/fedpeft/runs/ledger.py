"""What a deployment records beside the rounds: its sites, and a log of events.

    sites.json     run id, and for each site: facts, first and last contact, turns, bytes, failures
    events.jsonl   one line an event: time, event, round, client, bytes, reason ...

`fedpeft status` reads both. Where the privacy of a run rests on secret cohorts, neither says who
took part in which round.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedpeft.core.errors import RunFolderError
from fedpeft.core.strict_json import to_json
from fedpeft.rounds.handshake import announced
from fedpeft.runs.files import read_object, write_json

_COUNTED = {"answered": "turns", "failed": "failures"}


class Ledger:
    """The two files of a run folder, kept up to date.

    Args:
      folder: of the run; exists.
      secret: leave out who took part in a round.
    """

    def __init__(self, folder: Path, *, secret: bool = False) -> None:
        self._sites = folder / "sites.json"
        self._events = folder / "events.jsonl"
        self._began = folder / "rounds.jsonl"
        self._secret = secret
        self._table = read_ledger(folder) or {
            "run_id": secrets.token_hex(8), "expected": 0, "names": [], "sites": {}, "refused": {},
        }  # fmt: skip
        write_json(self._sites, self._table)

    @property
    def run_id(self) -> str:
        """The id of the run: drawn once for a folder, and kept when the run is resumed."""
        return str(self._table["run_id"])

    @property
    def names(self) -> Sequence[str]:
        """All sites of the run, once they have answered; empty before."""
        return tuple(self._table["names"])

    @property
    def announced(self) -> Mapping[str, int]:
        """The number of examples of each site that told it, as fixed when the run began."""
        return dict(self._table.get("examples", {}))

    def fix(self, names: Sequence[str]) -> None:
        """Record which sites take part; what they announced before round 1 stays for the run."""
        self._table |= {"names": list(names), "expected": len(names)}
        told = {
            name: announced(self._table["sites"].get(name, {}).get("facts", {})) for name in names
        }
        if not self._began.exists() or "examples" not in self._table:
            self._table["examples"] = {name: count for name, count in told.items() if count}
        write_json(self._sites, self._table)

    def add(self, facts: Mapping[str, object]) -> None:
        """Record facts about the server itself."""
        self._table |= facts
        write_json(self._sites, self._table)

    def watch(self, event: str, facts: Mapping[str, object]) -> None:
        """Record an event that an engine reports."""
        client = str(facts.get("client", ""))
        private = self._secret and event in ("asked", "answered", "failed", "dropped")
        if not private:
            self.note(event, facts)
        if event == "refused":
            self._table["refused"][str(facts["node"])] = facts["reason"]
            write_json(self._sites, self._table)
        elif event == "met" or (client in self._table["sites"] and not private):
            self._count(event, client, facts)

    def note(self, event: str, facts: Mapping[str, object]) -> None:
        """Add a line to the log."""
        line = {"time": _now(), "event": event, **facts}
        with self._events.open("a", encoding="utf-8") as opened:
            opened.write(to_json(line) + "\n")

    def save(self) -> None:
        """Write the table of sites; called once a round."""
        write_json(self._sites, self._table)

    def _count(self, event: str, client: str, facts: Mapping[str, object]) -> None:
        now = _now()
        row = self._table["sites"].setdefault(
            client,
            {"first": now, "last": now, "turns": 0, "failures": 0, "bytes_up": 0, "bytes_down": 0},
        )
        if event == "met":
            row["facts"] = facts["facts"]
        if event in ("met", "answered"):
            row["last"] = now
        if event in _COUNTED:
            row[_COUNTED[event]] += 1
        if event == "failed":
            row["last_failure"] = facts["reason"]
        sent = facts.get("bytes")
        if isinstance(sent, int):
            row["bytes_down" if event == "asked" else "bytes_up"] += sent
        if event == "met":
            self.save()


def read_ledger(folder: Path) -> dict[str, Any] | None:
    """Read `sites.json` of a run folder; None where there is none.

    Raises:
      RunFolderError: if it cannot be read.
    """
    file = folder / "sites.json"
    table = read_object(file)
    if table is not None and not table.keys() >= {"run_id", "names", "sites", "refused"}:
        raise RunFolderError(
            f"{file}: lacks a key that names the run or its sites. Restore the file, or start "
            "again in another folder"
        )
    return table


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
