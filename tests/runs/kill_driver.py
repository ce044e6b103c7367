"""Kills runs at chosen moments and resumes them; one import of torch for all trials.

Reads a JSON list of trials on standard input, writes one JSON object a trial on standard output.
A trial is killed in a forked process, then resumed in another, both through the real command line.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fedpeft.cli.running  # noqa: F401
from fedpeft.cli import main
from fedpeft.engines.local import LocalEngine
from fedpeft.launch.sweep import _PRELOADED
from fedpeft.runs.lock import LOCK

for module in _PRELOADED:  # imported once for all trials
    importlib.import_module(module)


def command(args: list[str]) -> int:
    """Run the command line in this process and return its exit code."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            main(args)
        except SystemExit as stop:
            return int(stop.code or 0)
    return 0


def forked(
    args: list[str], prepare: Callable[[], None] | None = None, after: float | None = None
) -> int:
    """Run in a forked process, killed `after` seconds; return the exit code, or -signal."""
    child = os.fork()
    if child == 0:
        if prepare:
            prepare()
        os._exit(command(args))
    if after is not None:
        time.sleep(after)
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def kill_at(number: int) -> None:
    """Kill this process at its `number`-th fsync or rename, with a file's last bytes torn off."""
    left = [number]

    def counted(original: Any) -> Any:
        def call(first: Any, *rest: Any) -> Any:
            left[0] -= 1
            if left[0] == 0:
                if isinstance(first, int) and os.path.isfile(f"/proc/self/fd/{first}"):
                    path = os.readlink(f"/proc/self/fd/{first}")
                    size = os.path.getsize(path)
                    os.truncate(path, size - min(size // 2, 20))
                os.kill(os.getpid(), signal.SIGKILL)
            return original(first, *rest)

        return call

    os.fsync, os.replace = counted(os.fsync), counted(os.replace)


def forget() -> None:
    """Break the law on purpose: client memories do not come back."""
    LocalEngine.restore = lambda self, memories, committed: None  # type: ignore[method-assign]


def outcome(out: Path) -> dict[str, Any]:
    """What must not depend on the kill."""
    summary = json.loads((out / "summary.json").read_text())
    records = [json.loads(line) for line in (out / "rounds.jsonl").read_text().splitlines()]
    for record in records:
        record.pop("seconds")
    return {
        "digest": summary["delta_digest"],
        "items": summary["items"],
        "records": records,
        "left": sorted(p.name for p in out.rglob("*") if p.is_file() and p.name != LOCK),
    }


def trial(spec: dict[str, Any]) -> dict[str, Any]:
    out = Path(spec["out"])
    shutil.rmtree(out, ignore_errors=True)
    args = ["run", spec["file"], "--out", str(out), "--resume"]
    for setting in spec.get("sets", []):
        args += ["--set", setting]
    killed = None
    if "at" in spec:
        killed = forked(args, lambda: kill_at(spec["at"]))
    elif "after" in spec:
        killed = forked(args, after=spec["after"])
    code = forked(args, forget if spec.get("forget") else None)
    return {"killed": killed, "code": code, **(outcome(out) if not code else {})}


if __name__ == "__main__":
    print(json.dumps([trial(spec) for spec in json.load(sys.stdin)]))
