"""Lines fit the terminal and break at spaces alone."""

from __future__ import annotations

import io
import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpeft.core.terminal import NO_BREAK, width_of, wrapped

WORDS = st.lists(st.text("abc,=/-", min_size=1, max_size=15), min_size=1, max_size=30)
GAPS = st.sampled_from([" ", "  ", "   ", "\n"])


@given(WORDS, st.lists(GAPS, min_size=30, max_size=30), st.integers(20, 60), st.integers(0, 6))
def test_no_word_is_broken_and_no_line_too_long(words, gaps, width, indent):
    text = " " * indent + "".join(f"{word}{gap}" for word, gap in zip(words, gaps, strict=False))
    lines = wrapped(text, width)
    assert " ".join(lines).split() == text.split()
    assert all(len(line) <= width for line in lines)


def test_a_word_longer_than_the_line_stays_whole():
    lines = wrapped(f"written: {'x' * 50} and more", 30)
    assert lines == ["written:", "  " + "x" * 50, "  and more"]


def test_a_value_goes_on_below_itself_where_there_is_room():
    text = "  memory      three point five megabytes"
    assert wrapped(text, 30) == ["  memory      three point five", "              megabytes"]
    assert wrapped(text, 26) == ["  memory", "    three point five", "    megabytes"]


def test_what_belongs_together_is_not_broken():
    assert wrapped(f"left: 3{NO_BREAK}min 5{NO_BREAK}s", 12) == ["left: 3 min", "  5 s"]


def test_lines_that_fit_and_streams_without_a_width_stay_as_they_are():
    text = "a   b: c\n   d  "
    assert wrapped(text, 10) == text.split("\n") == wrapped(text, None)


def test_width_is_that_of_columns_or_of_the_terminal(monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.delenv("LINES", raising=False)
    assert width_of(io.StringIO()) is None
    for said, width in (("33", 33), ("0", None), ("wide", None)):
        monkeypatch.setenv("COLUMNS", said)
        assert width_of(io.StringIO()) == width


def test_the_size_that_readline_tells_its_children_breaks_no_line_of_a_pipe():
    """Importing readline (pytest does) exports COLUMNS and LINES behind Python's back."""
    pytest.importorskip("readline")
    show = "import sys; from fedpeft.core.terminal import width_of; print(width_of(sys.stdout))"
    parent = (
        "import readline, subprocess, sys;"
        f"subprocess.run([sys.executable, '-c', {show!r}], stdout=sys.stdout)"
    )
    kept = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "LINES")}
    for set_by_user, width in (({}, "None"), ({"COLUMNS": "33"}, "33")):
        code = show if set_by_user else parent
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, env=kept | set_by_user
        )
        assert (done.stdout.strip(), done.stderr) == (width, "")


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="this system has no pseudo-terminals")
def test_width_of_a_terminal(monkeypatch):
    import fcntl
    import struct
    import termios

    monkeypatch.delenv("COLUMNS", raising=False)
    ours, theirs = os.openpty()
    with os.fdopen(ours), os.fdopen(theirs, "w") as terminal:
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("4H", 24, 57, 0, 0))
        assert width_of(terminal) == 57
