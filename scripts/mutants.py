"""Mutants: break one important line of `src/` at a time and see the nearest test file fail.

    line of mutants.toml ──> copy of src/ with the mutant ──> pytest -x TEST
                                                              fails: killed    passes: SURVIVED

Usage: python scripts/mutants.py [WORD ...]      only lines whose text holds one of the words

Each test file first passes on an unchanged copy, so that a failure tells of the mutant. Exit code
1 if a mutant survived, 2 if the table does not fit the code.
"""

from __future__ import annotations

import functools
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src"
TABLE = Path(__file__).with_suffix(".toml")
CPU_SECONDS, TIMEOUT = 120, 900
"""What one run of a test file may take; an endless loop or a deadlock counts as killed."""


@dataclass(frozen=True)
class Line:
    """A line that tests must guard.

    Attributes:
      what: what the line decides.
      snippet: a piece of it that occurs once in the sources.
      mutants: what takes the place of the snippet, one at a time.
      test: the nearest test file, from the root of the repository.
    """

    what: str
    snippet: str
    mutants: tuple[str, ...]
    test: str


class TableError(Exception):
    """The table of lines does not fit the code."""


def read_table(file: Path = TABLE) -> list[Line]:
    """Read the lines that are to be mutated."""
    rows = tomllib.loads(file.read_text("utf-8"))["line"]
    return [Line(r["what"], r["snippet"], tuple(r["mutants"]), r["test"]) for r in rows]


def read_sources(root: Path = SOURCE) -> dict[str, str]:
    """Return path -> text of all Python files below a folder."""
    return {str(f.relative_to(root)): f.read_text("utf-8") for f in sorted(root.rglob("*.py"))}


def find(line: Line, sources: dict[str, str]) -> str:
    """Return the one file that holds the snippet of a line, once.

    Raises:
      TableError: if it occurs nowhere, or more than once.
    """
    places = [path for path, text in sources.items() for _ in range(text.count(line.snippet))]
    if len(places) != 1:
        raise TableError(
            f"{TABLE.name}: {line.what}: {line.snippet!r} occurs {len(places)} times in src/ "
            f"{places}, allowed is once. If the line was rewritten, rewrite its entry too"
        )
    return places[0]


def mutated(line: Line, mutant: str, text: str) -> str:
    """Return the text of a file with a mutant in it.

    Raises:
      TableError: if the mutant changes nothing, or is no Python.
    """
    changed = text.replace(line.snippet, mutant)
    try:
        compile(changed, line.what, "exec")
    except SyntaxError as error:
        raise TableError(f"{TABLE.name}: {line.what}: {mutant!r}: {error}") from error
    if changed == text:
        raise TableError(f"{TABLE.name}: {line.what}: {mutant!r} is the snippet itself")
    return changed


def run_pytest(test: str, source: Path) -> None:
    """Run a test file on a copy of the sources, up to its first failure, and end this process."""
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    sys.path.insert(0, str(source))
    os.environ |= {"PYTHONPATH": str(source), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    sys.dont_write_bytecode = True  # a mutant of the same length must not meet its twin's bytecode
    if source != SOURCE:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    path, code = f"pythonpath={source} tests scripts .", int(pytest.ExitCode.INTERNAL_ERROR)
    try:
        code = pytest.main(["-xq", "-o", path, "--rootdir", str(ROOT), str(ROOT / test)])
    finally:
        os._exit(code)


def start(test: str, source: Path) -> BaseProcess:
    """Start a run in a forked process: torch, the slowest import, is there already."""
    process = get_context("fork").Process(target=run_pytest, args=(test, source))
    process.start()
    return process


def passed(process: BaseProcess, test: str) -> bool:
    """Wait for a run and say whether all tests passed.

    Raises:
      TableError: if pytest could not run the file at all.
    """
    process.join(TIMEOUT)
    if process.is_alive():
        process.kill()
        process.join()
        return False
    if process.exitcode not in (0, 1, -signal.SIGXCPU):
        raise TableError(f"{test}: pytest ended with exit code {process.exitcode}")
    return process.exitcode == 0


@functools.cache
def is_sound(test: str) -> bool:
    """Whether a test file passes on the sources as they are."""
    return passed(start(test, SOURCE), test)


def survivors(line: Line, sources: dict[str, str]) -> list[str]:
    """Return the mutants of a line that its test file does not notice.

    Raises:
      TableError: if the test file fails without any mutant.
    """
    path = find(line, sources)
    if not is_sound(line.test):
        raise TableError(f"{line.test} fails without any mutant: mend it first")
    with tempfile.TemporaryDirectory() as folder:
        runs = []
        for number, mutant in enumerate(line.mutants):
            copy = Path(folder) / str(number) / "src"
            shutil.copytree(SOURCE, copy)
            (copy / path).write_text(mutated(line, mutant, sources[path]), "utf-8")
            runs.append((mutant, start(line.test, copy)))
        return [mutant for mutant, process in runs if passed(process, line.test)]


def report(line: Line, sources: dict[str, str]) -> int:
    """Try all mutants of a line, print what came of it, and return how many survived."""
    began = time.monotonic()
    alive = survivors(line, sources)
    said = f"{len(line.mutants) - len(alive)} of {len(line.mutants)} killed"
    print(f"{said}  {time.monotonic() - began:4.0f} s  {line.what}", flush=True)
    for mutant in alive:
        print(f"  SURVIVED {line.test}: {line.snippet}  ->  {mutant}", flush=True)
    return len(alive)


def main(words: Sequence[str]) -> int:
    """Try the lines that hold one of some words (all without words); return the exit code."""
    sources = read_sources()
    lines = [line for line in read_table() if not words or any(w in str(line) for w in words)]
    try:
        for line in lines:
            find(line, sources)
        alive = sum(report(line, sources) for line in lines)
    except TableError as error:
        print(error, file=sys.stderr)
        return 2
    count = sum(len(line.mutants) for line in lines)
    print(f"{count - alive} of {count} mutants of {len(lines)} lines killed")
    return 1 if alive else 0


if __name__ == "__main__":
    import peft  # noqa: F401  (torch and transformers with it, once for all runs)
    import torch

    torch.set_num_threads(1)
    sys.exit(main(sys.argv[1:]))
