from __future__ import annotations

import json
import math
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support import TINY

import fedpeft.launch.sweep as sweep_module
from fedpeft.core.errors import ConfigError, RunFolderError
from fedpeft.experiment.read import DIGITS
from fedpeft.experiment.sweep_rows import parse_over, read_rows
from fedpeft.launch.sweep import (
    Failed,
    Finished,
    results_json,
    sweep,
)
from fedpeft.launch.sweep_table import table_lines
from fedpeft.results.grid import read_grids
from fedpeft.runs.lock import LOCK
from fedpeft.runs.records import RoundDone

ROWS = """
[[sweep]]
"tuning.method" = "head"
[[sweep]]
tuning = { method = "adapter", options = { reduction = 4 } }
[[sweep]]
tuning.method = "bias"
data.partition.min_examples = 900
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "tiny.toml").write_text(TINY + ROWS)
    return tmp_path / "tiny.toml"


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("seed=1,42", [1, 42]),
        ("tuning.method=head,lora", ["head", "lora"]),
        ("client.lr=1e-3,0.1", [0.001, 0.1]),
        ("tuning.blocks=[0,1],[2,3]", [[0, 1], [2, 3]]),
        ("a=1,two", [1, "two"]),
    ],
)
def test_over_parses_values(text: str, values: list[object]) -> None:
    assert parse_over(text)[1] == values


@pytest.mark.parametrize("text", ["seed", "=1", "seed="])
def test_over_without_key_or_value_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="found no KEY=V1,V2"):
        parse_over(text)


@pytest.mark.parametrize("bundled", [None, DIGITS])
def test_bundled_experiments_sweep_over_the_papers_methods(bundled: Path | None) -> None:
    methods = [row.experiment.tuning.method for row in read_rows(bundled)]
    assert methods == ["scratch", "full", "head", "bias", "adapter", "prompt", "lora"]


def test_over_multiplies_rows(file: Path) -> None:
    rows = read_rows(file, [], ["seed=1,2"])
    assert [row.experiment.seed for row in rows] == [1, 2] * 3
    assert len({row.name for row in rows}) == 6


def test_over_replaces_what_rows_set(file: Path) -> None:
    rows = read_rows(file, ["data.partition.min_examples=1"], ["tuning.method=head,bias"])
    assert {row.experiment.tuning.method for row in rows} == {"head", "bias"}
    assert {row.experiment.data.partition.min_examples for row in rows} == {1}


def test_nested_rows_set_options(file: Path) -> None:
    assert read_rows(file)[1].experiment.tuning.options["reduction"] == 4


def test_file_without_rows_is_one_run(tmp_path: Path) -> None:
    (tmp_path / "one.toml").write_text(TINY)
    assert [row.name for row in read_rows(tmp_path / "one.toml")] == ["run"]


def test_problems_of_all_rows_are_listed(file: Path) -> None:
    with pytest.raises(ConfigError) as error:
        read_rows(file, [], ["client.batch_size=0,64", "federation.rounds=-1,2"])
    assert "batch_size" in str(error.value) and "federation.rounds" in str(error.value)


def test_problem_of_the_file_is_told_once(file: Path) -> None:
    with pytest.raises(ConfigError) as error:
        read_rows(file, ["sed=1"])
    assert str(error.value).count("sed: unknown key") == 1


@pytest.mark.parametrize("rows", ["sweep = 3", "sweep = [1]"])
def test_rows_that_are_no_tables_are_refused(tmp_path: Path, rows: str) -> None:
    (tmp_path / "wrong.toml").write_text(rows)
    with pytest.raises(ConfigError, match=r"write rows as \[\[sweep\]\] tables"):
        read_rows(tmp_path / "wrong.toml")


def test_one_key_twice_is_refused() -> None:
    with pytest.raises(ConfigError, match="names a key twice"):
        read_rows(None, [], ["seed=1", "seed=2"])


def test_sweep_runs_all_rows_and_skips_them_the_next_time(file: Path, tmp_path: Path) -> None:
    rows, out = read_rows(file), tmp_path / "out"
    events: list[tuple[str, object]] = []
    found = sweep(rows, out, lambda row, event: events.append((row.name, event)))
    ends = [found[row.name] for row in rows]
    assert [type(end) for end in ends] == [Finished, Finished, Failed]
    assert isinstance(ends[2], Failed) and ends[2].exit_code == 2
    assert "min_examples" in ends[2].message
    assert not (out / rows[2].name).exists(), "a bad config leaves no folder"
    assert sum(isinstance(event, RoundDone) for _, event in events) == 4
    listed = json.loads((out / "sweep.json").read_text())
    assert [entry["status"] for entry in listed] == ["finished", "finished", "failed"]

    again = list(sweep(rows[:2], out).values())
    assert [end.skipped for end in again if isinstance(end, Finished)] == [True, True]
    assert [end.summary for end in again if isinstance(end, Finished)] == [
        end.summary for end in ends if isinstance(end, Finished)
    ]


def test_results_file_stands_in_for_the_folders(file: Path, tmp_path: Path) -> None:
    rows, results = read_rows(file)[:2], tmp_path / "new" / "folder" / "results.jsonl"
    first = sweep(rows, tmp_path / "here", results=results)
    written = results.read_bytes()
    assert written.count(b"\n") == 2

    elsewhere = sweep(rows, tmp_path / "there", results=results)
    for row in rows:
        a, b = first[row.name], elsewhere[row.name]
        assert isinstance(a, Finished) and isinstance(b, Finished) and b.skipped
        assert b.summary == {key: v for key, v in a.summary.items() if key != "run_dir"}
        assert not (tmp_path / "there" / row.name).exists(), "nothing is run twice"
    assert results.read_bytes() == written

    longer = read_rows(file, ["federation.rounds=3"])[:1]  # another experiment: no line of it
    end = sweep(longer, tmp_path / "longer", results=results)[longer[0].name]
    assert isinstance(end, Finished) and not end.skipped
    assert results.read_bytes().count(b"\n") == 3

    lines = {run.method: run for run in read_grids([results])[0].runs if len(run.rounds) == 2}
    folders = {run.method: run for run in read_grids([tmp_path / "here"])[0].runs}
    assert set(lines) == set(folders) == {"head", "adapter"}  # lines stand as the runs ended
    for method, folder in folders.items():
        line = lines[method]
        assert line.settings == folder.settings and line.curve() == folder.curve()
        assert line.metric == folder.metric and line.last == folder.last


@pytest.mark.slow
def test_killed_sweep_takes_its_runs_with_it_and_goes_on(tmp_path: Path) -> None:
    (tmp_path / "long.toml").write_text(TINY.replace("rounds = 2", "rounds = 60"))
    out = tmp_path / "out"
    command = [sys.executable, "-m", "fedpeft", "sweep", str(tmp_path / "long.toml")]
    options = ["--over", "seed=1,2", "--out", str(out)]
    process = subprocess.Popen([*command, *options], stderr=subprocess.DEVNULL)
    while not list(out.glob("*/checkpoints/*.safetensors")):
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    owners = [json.loads(lock.read_text())["pid"] for lock in out.glob(f"*/{LOCK}")]
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in owners) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert owners and time.monotonic() < deadline, "the runs end with the sweep"
    rows = read_rows(tmp_path / "long.toml", [], ["seed=1,2"])
    resumed, straight = sweep(rows, out), sweep(rows, tmp_path / "straight")
    assert [digest(resumed[row.name]) for row in rows] == [
        digest(straight[row.name]) for row in rows
    ]


def digest(end: Finished | Failed) -> object:
    assert isinstance(end, Finished)
    return end.summary["delta_digest"]


def test_folder_of_something_else_is_refused(file: Path, tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="not empty and holds no sweep"):
        sweep(read_rows(file), tmp_path)


def result(seed: int, accuracy: float) -> dict[str, object]:
    return {
        "overrides": {"tuning.method": "head", "seed": seed}, "method": "head", "seed": seed,
        "rounds": 2, "cohort": 4, "accuracy": accuracy, "bytes_up": 80, "bytes_down": 40,
        "trainable_parameters": 5, "payload_bytes": 20, "seconds": 3.0, "delta_digest": "x",
    }  # fmt: skip


def test_seeds_share_a_line_with_mean_and_sample_deviation() -> None:
    (line,) = table_lines([result(1, 0.5), result(2, 0.7)])
    assert line.mean == pytest.approx(0.6) and line.deviation == pytest.approx(math.sqrt(0.02))
    assert (line.up_per_turn, line.down_per_turn, line.total_bytes) == (10, 5, 120)
    assert (line.label, line.runs, line.finished) == ("head", 2, 2)


def test_unfinished_rows_stay_in_the_table(file: Path, tmp_path: Path) -> None:
    (line, *_) = table_lines(results_json(read_rows(file), {}, tmp_path))
    assert (line.finished, line.runs) == (0, 1) and math.isnan(line.mean)


def test_where_nothing_can_fork_runs_of_a_sweep_are_spawned(monkeypatch):
    monkeypatch.setattr(multiprocessing, "get_all_start_methods", lambda: ["spawn"])
    assert sweep_module._context().get_start_method() == "spawn"
