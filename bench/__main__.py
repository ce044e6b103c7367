"""Command line of the benchmark.

python -m bench                    all rows whose code changed, then docs/lab/benchmarks.md
python -m bench 3 5                some rows
python -m bench 2 --small          a size that only shows that the row works; nothing is kept
python -m bench 2 --out FILE.json  keep the result there
python -m bench --page             only write the page again
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from bench.children import ContestantError, run_row
from bench.figures import Report, holds, unavailable
from bench.machine import SCRATCH, child_environment, describe
from bench.page import file_of, verdict, write_page
from bench.rows import ROWS, Row, digest_of, measure, row_named

__all__ = ["main"]

_ROW_SECONDS = 1200.0
_VERSIONS = ("torch", "transformers", "peft", "numpy", "flwr", "ray")


def main(words: Sequence[str] | None = None) -> int:
    """Run what the command line asks for, and return the exit code."""
    asked = _parser().parse_args(words)
    if asked.inside:
        return _inside(row_named(asked.rows[0]), Path(asked.out), small=asked.small)
    if asked.page:
        print(write_page())
        return 0
    try:
        rows = [row_named(name) for name in asked.rows] or list(ROWS)
    except KeyError as error:
        print(f"bench: {error.args[0]}", file=sys.stderr)
        return 2
    force = asked.force or os.environ.get("FORCE") == "1"
    failed = 0
    for row in rows:
        out = Path(asked.out) if asked.out else _place(row, small=asked.small)
        if not asked.small and not force and _is_current(row, out):
            print(f"row {row.name}: measured with this code already (FORCE=1 measures again)")
            continue
        failed += _outside(row, out, small=asked.small)
    if not asked.small and not asked.out:
        print(write_page())
    return 1 if failed else 0


def _stop(number: int, frame: object) -> None:
    sys.exit(128 + number)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = ", ".join(row.name for row in ROWS)
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"some of {names}; all by default")
    parser.add_argument("--small", action="store_true", help="only show that it works")
    parser.add_argument("--out", metavar="FILE", help="where the result goes")
    parser.add_argument("--force", action="store_true", help="measure again; also FORCE=1")
    parser.add_argument("--page", action="store_true", help="only write docs/lab/benchmarks.md")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    return parser


def _place(row: Row, *, small: bool) -> Path:
    return SCRATCH / f"small-{row.name}.json" if small else file_of(row)


def _is_current(row: Row, file: Path) -> bool:
    if not file.exists():
        return False
    found = json.loads(file.read_text("utf-8"))
    return bool(found.get("available", True) and found.get("digest") == digest_of(row))


def _outside(row: Row, out: Path, *, small: bool) -> int:
    """Measure a row in a fresh process, and print what it says."""
    print(f"row {row.name}: {row.title} ...", flush=True)
    command = [sys.executable, "-m", "bench", row.name, "--inside", "--out", str(out.absolute())]
    command += ["--small"] if small else []
    try:
        code = run_row(command, child_environment(threads=None), timeout=_ROW_SECONDS)
    except ContestantError as error:
        print(f"row {row.name}: {error}; its file is as it was")
        return 1
    if code not in (0, 1):
        print(f"row {row.name}: its process ended with exit code {code}; its file is as it was")
        return 1
    _show(json.loads(out.read_text("utf-8")))
    return code


def _inside(row: Row, out: Path, *, small: bool) -> int:
    """Measure a row in this process."""
    began = time.perf_counter()
    digest = digest_of(row)
    report = _measured(row, small=small)
    now = datetime.datetime.now(datetime.UTC)
    head = {
        "row": row.name,
        "available": True,
        "small": small,
        "date": now.strftime("%Y-%m-%d"),
        "seconds": round(time.perf_counter() - began, 1),
        "digest": digest,
        "hardware": dict(describe()),
        "versions": _versions(),
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    whole = json.dumps({**head, **report}, indent=1, ensure_ascii=False)
    out.write_text(whole + "\n", "utf-8")
    return 0 if holds(report) and not report.get("broke") else 1


def _measured(row: Row, *, small: bool) -> Report:
    """Run a row; one that breaks is reported with its reason, and without figures."""
    try:
        return measure(row, small=small)
    except Exception as error:
        traceback.print_exc()
        reason = f"{type(error).__name__}: {error}"
        return {**unavailable(reason), "broke": True}


def _versions() -> dict[str, str]:
    found = {}
    for name in _VERSIONS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _show(report: Report) -> None:
    if not report["available"]:
        print(f"  not available: {report['reason']}")
    for found in report["figures"]:
        low, middle, high = (f"{found[key]:.3g}" for key in ("min", "median", "max"))
        print(f"  {found['name']}: {middle} ({low} to {high})  {verdict(found)}")
    for found in report["checks"]:
        print(f"  {'ok' if found['ok'] else 'FAILED'}: {found['name']}: {found['detail']}")
    print(f"  {report['seconds']:.0f} s", flush=True)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _stop)  # so that contestants are ended on the way out
    sys.exit(main())
