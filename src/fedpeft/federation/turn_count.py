"""A site's own count of the turns that it has trained, on its disk, over all restarts.

    turns.jsonl    {"run": ..., "turn": 3, "request": "ab12…"}     one line before each training

A server numbers turns and names runs as it likes, so neither is trusted: what counts is how often
this site has trained. The last request of a run, asked again after a crash, is not counted again; a
turn that fails after it was counted stays counted.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedpeft.core.errors import ConfigError, EngineError
from fedpeft.experiment.site_file import SiteConfig

__all__ = ["check_turn", "count_turn"]


def check_turn(site: SiteConfig, run: str, request: str) -> None:
    """Refuse a turn that would be one too many; nothing is counted.

    Args:
      site: the site's file.
      run: the run id.
      request: digest of the request.

    Raises:
      ConfigError: if the run, or all runs together, have had their turns.
      EngineError: if the count is corrupt.
    """
    rows, allow = _rows(site), site.allow
    if _counted(rows, run, request):
        return
    trained = sum(row["run"] == run for row in rows)
    if trained >= allow.max_rounds:
        raise ConfigError(
            f"this site has trained {trained} turns of this run, by its own count; it allows "
            f"{allow.max_rounds} (allow.max_rounds)"
        )
    if allow.max_turns is not None and len(rows) >= allow.max_turns:
        raise ConfigError(
            f"this site has trained {len(rows)} turns over all runs, by its own count; it allows "
            f"{allow.max_turns} (allow.max_turns)"
        )


def count_turn(site: SiteConfig, run: str, turn: int, request: str) -> None:
    """Count a turn, before it is trained.

    Raises:
      EngineError: if the count is corrupt.
    """
    if _counted(_rows(site), run, request):
        return
    file = _file(site)
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        row = {"run": run, "turn": turn, "request": request}
        os.write(descriptor, json.dumps(row).encode() + b"\n")
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _counted(rows: Sequence[Mapping[str, Any]], run: str, request: str) -> bool:
    """Whether a request is the last that was counted in its run: a try again after a crash."""
    last = next((row for row in reversed(rows) if row["run"] == run), None)
    return last is not None and bool(last["request"] == request)


def _file(site: SiteConfig) -> Path:
    return Path(site.state) / "turns.jsonl"


def _rows(site: SiteConfig) -> list[dict[str, Any]]:
    file = _file(site)
    try:
        rows = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
        if not all(isinstance(row, dict) and {"run", "request"} <= row.keys() for row in rows):
            raise ValueError("a line holds no turn")
    except FileNotFoundError:
        return []
    except ValueError as error:
        raise EngineError(
            f"{file}: the count of turns is corrupt: {error}. No turn is trained until it is "
            "repaired: remove an incomplete last line, and nothing else"
        ) from error
    return rows
