from __future__ import annotations

from pathlib import Path

import pytest

from fedpeft.core.errors import RunFolderError
from fedpeft.core.metrics import ACCURACY
from fedpeft.runs.records import Record, append_record, cut_records, read_records, totals


def record(number: int, **metrics: float) -> Record:
    return {
        "round": number,
        "cohort": ["a", "b"],
        "failures": {},
        "metrics": metrics,
        "update_norm": 1.0,
        "bytes_down": 100,
        "bytes_up": 10 * number,
        "seconds": 0.5,
    }


@pytest.fixture
def file(tmp_path: Path) -> Path:
    for number in (1, 2, 3):
        append_record(tmp_path / "rounds.jsonl", record(number))
    return tmp_path / "rounds.jsonl"


def test_read_gives_what_was_appended(file: Path) -> None:
    assert read_records(file) == [record(1), record(2), record(3)]


def test_a_missing_file_has_no_rounds(tmp_path: Path) -> None:
    assert read_records(tmp_path / "none") == []


@pytest.mark.parametrize("cut", [1, 2, 30])
def test_a_torn_last_line_is_left_out(file: Path, cut: int) -> None:
    file.write_bytes(file.read_bytes()[:-cut])
    assert len(read_records(file)) == (3 if cut == 1 else 2)
    cut_records(file, 2)
    append_record(file, record(3))
    assert len(read_records(file)) == 3


def test_a_torn_line_in_the_middle_is_an_error(file: Path) -> None:
    lines = file.read_text().splitlines()
    file.write_text("\n".join([lines[0], lines[1][:20], lines[2]]) + "\n")
    with pytest.raises(RunFolderError, match="line 2: it is not one whole JSON object"):
        read_records(file)


def test_a_missing_round_is_an_error(file: Path) -> None:
    lines = file.read_text().splitlines()
    file.write_text("\n".join([lines[0], lines[2]]) + "\n")
    with pytest.raises(RunFolderError, match="found round 3, expected 2"):
        read_records(file)


def test_cutting_to_more_than_there_is_changes_nothing(file: Path) -> None:
    before = file.read_bytes()
    with pytest.raises(RunFolderError, match="found 3 rounds, the newest checkpoint is of round 4"):
        cut_records(file, 4)
    assert file.read_bytes() == before


def test_totals_are_sums_and_extremes() -> None:
    lines = [
        record(1, loss=2.0, accuracy=0.5),
        record(2, loss=1.0, accuracy=0.75),
        record(3, train_loss=0.1),
        record(4, loss=1.5, accuracy=0.625),
    ]
    found = totals(lines)
    assert (found.rounds, found.bytes_up, found.bytes_down, found.seconds) == (4, 100, 400, 2.0)
    assert (found.last["accuracy"], found.best) == (0.625, 0.75)
    assert found.metric is ACCURACY


def test_best_perplexity_is_the_lowest() -> None:
    lines = [record(1, loss=2.0, perplexity=9.0), record(2, loss=3.0, perplexity=20.0)]
    assert totals(lines).best == 9.0


def test_a_figure_that_is_not_finite_is_null_and_the_others_count(tmp_path: Path) -> None:
    """A model that diverged has no loss; its accuracy is known, live and read back."""
    metrics = {"loss": float("nan"), "accuracy": 0.1, "train_loss": float("inf")}
    line: Record = {"round": 1, "metrics": metrics, "bytes_up": 1, "bytes_down": 1, "seconds": 1.0}
    append_record(tmp_path / "rounds.jsonl", line)
    text = (tmp_path / "rounds.jsonl").read_text()
    assert "NaN" not in text and "Infinity" not in text
    for records in ([line], read_records(tmp_path / "rounds.jsonl")):
        found = totals(records)
        assert found.last == {"loss": None, "accuracy": 0.1, "train_loss": None}
        assert found.metric.name == "accuracy" and found.best == 0.1
