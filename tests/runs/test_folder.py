"""What may be done with a run folder, and what a run leaves in it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import safetensors
from safetensors.torch import load_file

from fedpeft.core.deltas import DeltaSpec, digest_of
from fedpeft.core.errors import ConfigError, RunFolderError
from fedpeft.experiment.experiment import Experiment
from fedpeft.experiment.read import read_experiment, validate
from fedpeft.launch.start import run
from fedpeft.runs.checkpoint import checkpoints
from fedpeft.runs.folder import RunFolder, experiment_digest, read_summary, stored_experiment
from fedpeft.runs.load import load_run
from fedpeft.runs.lock import LOCK

TINY = {
    "name": "tiny",
    "model": {"name": "preset:tiny-vit"},
    "data": {"partition": {"clients": 6, "alpha": 1.0}},
    "federation": {"rounds": 2, "clients_per_round": 2},
    "client": {"epochs": 1},
    "engine": {"workers": 1},
}


def tiny(**federation: object) -> Experiment:
    return validate({**TINY, "federation": {**TINY["federation"], **federation}}, "test")


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "done"
    run(tiny(), out)
    return out


def copy(folder: Path, to: Path) -> Path:
    for name, content in snapshot(folder).items():
        (to / name).parent.mkdir(parents=True, exist_ok=True)
        (to / name).write_bytes(content)
    return to


def test_a_folder_that_was_moved_says_where_it_is(done: Path, tmp_path: Path) -> None:
    moved = copy(done, tmp_path / "moved")
    before = snapshot(moved)
    assert json.loads(before["summary.json"])["run_dir"] == str(done)
    assert run(tiny(), moved, resume=True)["run_dir"] == str(moved)
    assert load_run(moved).summary["run_dir"] == str(moved)
    assert read_summary(RunFolder(moved))["run_dir"] == str(moved)
    assert snapshot(moved) == before
    assert run(tiny(rounds=3), moved, resume=True)["run_dir"] == str(moved)
    assert json.loads((moved / "summary.json").read_text())["run_dir"] == str(moved)


def test_folder_holds_what_the_contract_names(done: Path) -> None:
    names = {name.split("/")[0] for name in snapshot(done)}
    assert names >= {
        "experiment.toml", "environment.json", "rounds.jsonl", "summary.json", "checkpoints",
        "delta.safetensors",
    }  # fmt: skip
    assert LOCK not in names


def test_records_have_the_names_of_the_contract(done: Path) -> None:
    lines = [json.loads(line) for line in (done / "rounds.jsonl").read_text().splitlines()]
    assert [line["round"] for line in lines] == [1, 2]
    assert set(lines[0]) == {
        "round", "cohort", "failures", "metrics", "update_norm", "bytes_down", "bytes_up",
        "messages_down", "messages_up", "seconds",
    }  # fmt: skip
    assert len(lines[0]["cohort"]) == 2 and "accuracy" in lines[0]["metrics"]


def test_summary_has_the_names_of_the_contract(done: Path) -> None:
    summary = json.loads((done / "summary.json").read_text())
    assert set(summary) >= {
        "method", "seed", "rounds", "accuracy", "best_accuracy", "trainable_parameters", "bytes_up",
        "bytes_down", "seconds", "epsilon", "delta_digest", "run_dir", "stopped",
    }  # fmt: skip
    assert (summary["rounds"], summary["stopped"], summary["epsilon"]) == (2, "rounds", None)


def test_summary_digest_is_that_of_the_final_delta(done: Path) -> None:
    tensors = load_file(done / "delta.safetensors")
    summary = json.loads((done / "summary.json").read_text())
    assert digest_of(DeltaSpec.of(tensors).flatten(tensors)) == summary["delta_digest"]
    with safetensors.safe_open(done / "delta.safetensors", "pt") as opened:
        assert opened.metadata()["delta_digest"] == summary["delta_digest"]


def test_folder_alone_repeats_the_run(done: Path, tmp_path: Path) -> None:
    again = run(read_experiment(done / "experiment.toml"), tmp_path / "again")
    assert again["delta_digest"] == json.loads((done / "summary.json").read_text())["delta_digest"]


def test_partition_counts_every_example(done: Path) -> None:
    found = json.loads((done / "partition.json").read_text())
    assert len(found["clients"]) == 6 and len(found["labels"]) == 10
    assert sum(map(sum, found["counts"])) == 1258
    told = json.loads((done / "environment.json").read_text())
    assert (told["task"], told["data"]["examples"]) == ("image-classification", 1258)
    assert told["data"]["clients"] == 6


def test_finished_run_resumed_gives_its_summary_and_changes_nothing(done: Path) -> None:
    before = snapshot(done)
    summary = run(tiny(), done, resume=True)
    assert summary == json.loads((done / "summary.json").read_text())
    assert snapshot(done) == before


def test_more_rounds_go_on_to_the_same_end_as_a_straight_run(done: Path, tmp_path: Path) -> None:
    longer = run(tiny(rounds=3), copy(done, tmp_path / "longer"), resume=True)
    straight = run(tiny(rounds=3), tmp_path / "straight")
    assert longer["delta_digest"] == straight["delta_digest"]
    assert longer["bytes_up"] == straight["bytes_up"]
    assert stored_experiment(RunFolder(tmp_path / "longer")).federation.rounds == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rounds": 1}, "federation.rounds is 1 here and 2 in the folder"),
        ({"clients_per_round": 3}, "federation.clients_per_round is 3 here and 2 in the folder"),
        ({"algorithm": "fedadam"}, 'federation.algorithm is "fedadam" here and "fedavg"'),
    ],
)
def test_another_experiment_is_refused(done: Path, change: dict[str, object], message: str) -> None:
    before = snapshot(done)
    with pytest.raises(RunFolderError, match=message):
        run(tiny(**change), done, resume=True)
    assert snapshot(done) == before


def test_workers_may_differ(done: Path) -> None:
    experiment = validate({**TINY, "engine": {"workers": 2}}, "test")
    assert run(experiment, done, resume=True)["rounds"] == 2
    assert experiment_digest(experiment) == experiment_digest(tiny(rounds=9))


def test_full_folder_is_refused_without_resume(done: Path) -> None:
    before = snapshot(done)
    with pytest.raises(RunFolderError, match=r"not empty .* go on with the run in it by --resume"):
        run(tiny(), done)
    assert snapshot(done) == before


def test_folder_of_something_else_is_refused_with_resume(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(RunFolderError, match=r"holds no experiment\.toml, so it is no run folder"):
        run(tiny(), tmp_path, resume=True)
    assert list(snapshot(tmp_path)) == ["thesis.tex"]


def test_file_as_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(RunFolderError, match="this is a file; --out must name a folder"):
        run(tiny(), tmp_path / "file")


@pytest.mark.parametrize("state", ["missing", "empty", "without a checkpoint"])
def test_resume_starts_where_nothing_is(done: Path, tmp_path: Path, state: str) -> None:
    out = tmp_path / "out"
    if state != "missing":
        out.mkdir()
    if state == "without a checkpoint":
        (out / "experiment.toml").write_bytes((done / "experiment.toml").read_bytes())
    summary = run(tiny(), out, resume=True)
    assert (
        summary["delta_digest"] == json.loads((done / "summary.json").read_text())["delta_digest"]
    )


def test_resume_needs_a_folder() -> None:
    with pytest.raises(ConfigError, match="there is no --out"):
        run(tiny(), resume=True)


def test_impossible_data_leave_no_folder(tmp_path: Path) -> None:
    table = {**TINY, "data": {"partition": {"clients": 6, "alpha": 0.001, "min_examples": 300}}}
    with pytest.raises(ConfigError):
        run(validate(table, "test"), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_corrupt_checkpoint_is_an_error_and_the_one_before_serves(
    done: Path, tmp_path: Path
) -> None:
    out = copy(done, tmp_path / "out")
    (out / "summary.json").unlink()
    newest = checkpoints(out / "checkpoints")[-1]
    newest.write_bytes(newest.read_bytes()[:-1])
    with pytest.raises(RunFolderError, match=r"round-00002.safetensors: the checkpoint is corrupt"):
        run(tiny(), out, resume=True)
    newest.unlink()
    summary = run(tiny(), out, resume=True)
    assert (
        summary["delta_digest"] == json.loads((done / "summary.json").read_text())["delta_digest"]
    )


def test_checkpoint_of_another_experiment_is_refused(done: Path, tmp_path: Path) -> None:
    run(tiny(clients_per_round=3), tmp_path / "other")
    out = copy(done, tmp_path / "out")
    (out / "summary.json").unlink()
    for file in checkpoints(tmp_path / "other" / "checkpoints"):
        (out / "checkpoints" / file.name).write_bytes(file.read_bytes())
    with pytest.raises(RunFolderError, match="the checkpoint is of another experiment"):
        run(tiny(), out, resume=True)


@pytest.mark.parametrize("name", ["experiment.toml", "summary.json"])
def test_corrupt_file_is_named(done: Path, tmp_path: Path, name: str) -> None:
    out = copy(done, tmp_path / "out")
    (out / name).write_text("{ [")
    with pytest.raises(RunFolderError, match=name):
        run(tiny(), out, resume=True)


def test_missing_records_are_an_error(done: Path, tmp_path: Path) -> None:
    out = copy(done, tmp_path / "out")
    (out / "summary.json").unlink()
    (out / "rounds.jsonl").write_text("")
    with pytest.raises(RunFolderError, match="found 0 rounds, the newest checkpoint is of round 2"):
        run(tiny(), out, resume=True)


def test_files_of_the_user_are_never_ours(tmp_path):
    """A folder with anything that we did not make is not empty, and keeps it."""
    for name in ("lock", "movie.partial", "experiment.toml.partial", ".hidden"):
        folder = tmp_path / name.strip(".")
        folder.mkdir()
        (folder / name).write_text("x")
        for resume in (False, True):
            with pytest.raises(RunFolderError, match=r"not empty|no run folder"):
                run(tiny(), folder, resume=resume)
        assert snapshot(folder) == {name: b"x"}


def test_a_file_of_the_user_in_a_run_folder_stays(tmp_path):
    run(tiny(), tmp_path / "run")
    (tmp_path / "run" / "movie.partial").write_text("x")
    (tmp_path / "run" / "summary.json.fedpeft.partial").write_text("left by a crash")
    run(tiny(rounds=3), tmp_path / "run", resume=True)
    assert (tmp_path / "run" / "movie.partial").read_text() == "x"
    assert not (tmp_path / "run" / "summary.json.fedpeft.partial").exists()
