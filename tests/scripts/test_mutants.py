"""The table of mutants fits the code; running them is `make mutants`."""

from __future__ import annotations

import subprocess
import sys

import pytest

import mutants
from mutants import Line, TableError

SOURCES = mutants.read_sources()
LINES = mutants.read_table()
LINE = Line("a sum", "a + b", ("a - b", "a"), "tests/none.py")


@pytest.mark.parametrize("line", LINES, ids=lambda line: line.what)
def test_every_snippet_occurs_once_and_every_mutant_is_python(line):
    text = SOURCES[mutants.find(line, SOURCES)]
    assert len({mutants.mutated(line, mutant, text) for mutant in line.mutants}) >= 3
    assert (mutants.ROOT / line.test).is_file()


def test_twenty_lines_at_least_are_guarded():
    assert len({line.what for line in LINES}) == len({line.snippet for line in LINES}) >= 20


@pytest.mark.parametrize("text", ["a * b", "a + b, a + b"])
def test_a_snippet_that_does_not_occur_once_is_refused(text):
    with pytest.raises(TableError, match=r"a sum: 'a \+ b' occurs [02] times in src/"):
        mutants.find(LINE, {"file.py": text})


def test_mutants_that_change_nothing_or_are_no_python_are_refused():
    assert mutants.mutated(LINE, "a - b", "c = a + b") == "c = a - b"
    with pytest.raises(TableError, match="is the snippet itself"):
        mutants.mutated(LINE, "a + b", "c = a + b")
    with pytest.raises(TableError, match=r"a sum: 'a \+': invalid syntax"):
        mutants.mutated(LINE, "a +", "c = a + b")


BLIND = """
import dataclasses, sys, mutants
line = dataclasses.replace(mutants.read_table()[0], test="tests/core/test_deltas.py")
sys.exit(mutants.report(line, mutants.read_sources()))
"""


@pytest.mark.slow
def test_a_mutant_survives_where_no_test_looks():
    """In processes of their own, which have not imported the package yet."""
    found = [
        subprocess.run([sys.executable, *args], cwd=mutants.ROOT / "scripts", capture_output=True)
        for args in (["-c", BLIND], ["mutants.py", LINES[0].what])
    ]
    assert [run.returncode for run in found] == [len(LINES[0].mutants), 0]
    assert found[0].stdout.count(b"SURVIVED") == len(LINES[0].mutants)
    assert b"3 of 3 mutants of 1 lines killed" in found[1].stdout
