"""A site's own count of the turns that it has trained, on its disk, over all restarts.

    turns.jsonl    {"run": ..., "turn": 3, "request": "ab12…"}     one line before each training

A server numbers turns and names runs as it likes, so neither is trusted: what counts is how often
this site has trained. The last request of a run, asked again after a crash, is not counted again; a
turn that fails after it was counted stays counted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedpeft.core.errors import ConfigError
from fedpeft.experiment.site_file import SiteConfig
from fedpeft.federation.journal import append, rows


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
    counted, allow = _rows(site), site.allow
    if _counted(counted, run, request):
        return
    trained = sum(row["run"] == run for row in counted)
    if trained >= allow.max_rounds:
        raise ConfigError(
            f"this site has trained {trained} turns of this run, by its own count; it allows "
            f"{allow.max_rounds} (allow.max_rounds)"
        )
    if allow.max_turns is not None and len(counted) >= allow.max_turns:
        raise ConfigError(
            f"this site has trained {len(counted)} turns over all runs, by its own count; it "
            f"allows {allow.max_turns} (allow.max_turns)"
        )


def count_turn(site: SiteConfig, run: str, turn: int, request: str) -> None:
    """Count a turn, before it is trained.

    Raises:
      EngineError: if the count is corrupt.
    """
    if _counted(_rows(site), run, request):
        return
    append(_file(site), {"run": run, "turn": turn, "request": request})


def _counted(counted: Sequence[Mapping[str, Any]], run: str, request: str) -> bool:
    """Whether a request is the last that was counted in its run: a try again after a crash."""
    last = next((row for row in reversed(counted) if row["run"] == run), None)
    return last is not None and bool(last["request"] == request)


def _file(site: SiteConfig) -> Path:
    return Path(site.state) / "turns.jsonl"


def _rows(site: SiteConfig) -> list[dict[str, Any]]:
    return rows(_file(site), frozenset({"run", "request"}), "count of turns")
