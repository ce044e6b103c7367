from __future__ import annotations

import io
import re

import pytest

from fedpeft.core.metrics import ACCURACY
from fedpeft.launch.progress import progress_line, show_progress, time_words
from fedpeft.runs.records import RoundDone, Totals


def done(rounds: int) -> RoundDone:
    so_far = Totals(
        rounds, 1_000_000, 500_000, 10, 10, 8.0, {"accuracy": 0.5, "loss": 2.0}, ACCURACY, 0.5
    )
    return RoundDone({}, so_far, 4)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_line_tells_accuracy_bytes_and_time_left() -> None:
    line = "round 1/4, accuracy 0.5, loss 2, 1.5 MB sent, 24 s left"
    assert progress_line(done(1)) == line


def test_last_line_is_done() -> None:
    assert progress_line(done(4)).endswith("done")


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.44, "0.4 s"), (59, "59 s"), (185, "3 min 5 s"), (7800, "2 h 10 min")],
)
def test_durations_are_readable(seconds: float, words: str) -> None:
    assert time_words(seconds) == words


def test_plain_stream_gets_plain_lines() -> None:
    stream = io.StringIO()
    with show_progress(stream) as report:
        report("lora", done(1))
        report("lora", "finished")
    assert stream.getvalue().splitlines() == [f"lora: {progress_line(done(1))}", "lora: finished"]


def test_terminal_gets_a_bar() -> None:
    stream = Terminal()
    with show_progress(stream) as report:
        report("lora", done(1))
    assert "\x1b[" in stream.getvalue() and "round 1/4" in stream.getvalue()


@pytest.mark.parametrize("width", [40, 80, 120])
def test_progress_on_a_terminal_fits_and_breaks_no_word(width, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    stream = Terminal()
    names = ("method=adapter,clients_per_round=8", "bias")
    with show_progress(stream) as report:
        for name in names:
            report(name, done(3))
        report(names[1], "failed: no client of the cohort gave an answer that could be used")
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", stream.getvalue()).replace("\r", "\n")
    assert all(len(line) <= width for line in shown.splitlines())
    whole = f"{names[0]}: {names[1]}: {progress_line(done(3))} failed: {names[0]} {names[1]}"
    words = set(f"{whole} no client of the cohort gave an answer that could be used".split())
    assert {word for word in shown.split() if not set(word) <= set("━─")} <= words
    assert {"failed:", "1.5", "left"} - set(shown.split()) <= {"left", "1.5"}


def test_a_run_that_has_ended_leaves_the_lines_that_move(monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    stream = Terminal()
    with show_progress(stream) as report:
        report("a", done(1))
        report("b", done(1))
        report("a", "finished")
        before = len(stream.getvalue())
        report("b", done(2))
    assert "round 2/4" in stream.getvalue()[before:]
    assert "round 1/4" not in stream.getvalue()[before:]
