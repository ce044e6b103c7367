from __future__ import annotations

import json
from pathlib import Path

import pytest

from fedpeft.cli import main
from fedpeft.core.errors import RunFolderError
from fedpeft.experiment.read import DIGITS
from fedpeft.experiment.resolve import resolve
from fedpeft.experiment.sweep_rows import SweepRow, read_rows
from fedpeft.launch.sweep import Finished, sweep
from fedpeft.results.lines import append_line, line_digest, read_lines, read_runs


def finished(folder: Path, method: str) -> Path:
    folder.mkdir()
    (folder / "experiment.toml").write_text(
        f'seed = 1\n[tuning]\nmethod = "{method}"\n[data]\nsource = "digits"\n'
    )
    records = [
        {
            "round": at,
            "cohort": ["a", "b"],
            "failures": {},
            "bytes_up": 10,
            "bytes_down": 20,
            "metrics": {"accuracy": at / 4},
        }
        for at in (1, 2)
    ]
    (folder / "rounds.jsonl").write_text("".join(json.dumps(each) + "\n" for each in records))
    summary = {"accuracy": 0.5, "metric": "accuracy", "rounds": 2, "run_dir": str(folder)}
    data = {"name": str(folder), "digest": "1", "clients": 2, "examples": 30, "evaluated": 4}
    environment = {"hardware": str(folder), "versions": {}, "task": "t", "data": data}
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "environment.json").write_text(json.dumps(environment))
    return folder


def lines(tmp_path: Path) -> Path:
    file = tmp_path / "results.jsonl"
    for number, method in enumerate(("bias", "full")):
        append_line(file, str(number), finished(tmp_path / method, method))
    return file


def test_a_line_that_was_cut_off_is_as_if_never_written(tmp_path: Path) -> None:
    file = lines(tmp_path)
    whole = file.read_bytes()
    for cut in (1, 2, 40, len(whole.splitlines()[1]) - 1):
        file.write_bytes(whole[:-cut] if cut > 1 else whole[:-1])
        assert set(read_lines(file)) == ({"0", "1"} if cut == 1 else {"0"})
        append_line(file, "2", tmp_path / "full")
        assert "2" in read_lines(file), "the next line does not join the broken one"


@pytest.mark.parametrize("text", ["{}", "[1]", '{"experiment": "x", "settings": 3}', "}"])
def test_a_foreign_line_is_named(tmp_path: Path, text: str) -> None:
    file = lines(tmp_path)
    with file.open("a") as opened:
        opened.write(text + "\n")
    with pytest.raises(RunFolderError, match=r"results\.jsonl, line 3: holds no finished run"):
        read_lines(file)


def test_lines_hold_nothing_of_the_machine(tmp_path: Path) -> None:
    file = lines(tmp_path)
    assert str(tmp_path) not in file.read_text()
    environment = json.loads(file.read_text().splitlines()[0])["environment"]
    assert environment.pop("data") == {"clients": 2, "examples": 30, "evaluated": 4}
    assert set(environment) == {"versions", "task"}


def test_files_and_folders_are_read_together_and_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = lines(tmp_path)
    runs = read_runs([file, tmp_path / "bias"])
    assert [run.method for run in runs] == ["bias", "full", "bias"]
    with pytest.raises(SystemExit) as end:
        main(["report", str(file)])
    assert not end.value.code and (tmp_path / "results.html").is_file()
    with pytest.raises(SystemExit) as end:
        main(["claims", str(file)])
    assert not end.value.code
    page = (tmp_path / "results.html").read_text()
    assert "fedpeft run experiment.toml" in page and "data.source = &#34;digits&#34;" in page
    capsys.readouterr()


def test_a_line_counts_where_its_data_have_moved(tmp_path: Path) -> None:
    """Nothing is loaded or trained: the sweep reads lines alone."""

    def rows(folder: Path) -> list[SweepRow]:
        settings = [f"data.source={folder / 'data.npz'}", "model.name=preset:tiny-vit", "seed=1"]
        return read_rows(DIGITS, settings, ["tuning.method=bias"])

    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir(), there.mkdir()
    (here / "data.npz").write_bytes(b"pictures")
    file, (row,) = tmp_path / "results.jsonl", rows(here)
    digest = line_digest(resolve(row.experiment).experiment)
    append_line(file, digest, finished(tmp_path / "bias", "bias"))

    (here / "data.npz").rename(there / "data.npz")
    (end,) = sweep(rows(there), tmp_path / "out", results=file).values()
    assert isinstance(end, Finished) and end.skipped

    (there / "data.npz").write_bytes(b"Pictures")
    (other,) = rows(there)
    assert line_digest(resolve(other.experiment).experiment) not in read_lines(file)
