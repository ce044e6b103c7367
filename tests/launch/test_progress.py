from __future__ import annotations

import io

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
