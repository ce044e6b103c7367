"""The untuned model is scored once: in the summary, never the best, and kept by a resume."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support import TINY

import fedpeft
from fedpeft.experiment.experiment import Experiment
from fedpeft.runs import loop
from fedpeft.runs.folder import RunFolder, experiment_digest


def run(tmp_path: Path, out: str, *, resume: bool = False, **settings: object) -> dict[str, object]:
    file = tmp_path / "tiny.toml"
    file.write_text(TINY)
    dotted = {f"federation.{key}": value for key, value in settings.items()}
    fedpeft.run(file, dotted, out=tmp_path / out, resume=resume)
    return json.loads((tmp_path / out / "summary.json").read_text())


def test_the_untuned_model_is_scored_once_and_a_resume_keeps_it(tmp_path, monkeypatch):
    straight = run(tmp_path, "straight", rounds=2)
    run(tmp_path, "resumed", rounds=1)
    monkeypatch.setattr(loop, "initial_metrics", lambda built: pytest.fail("scored again"))
    resumed = run(tmp_path, "resumed", resume=True, rounds=2)
    assert 0 <= straight["initial_accuracy"] <= 1
    assert resumed["initial_accuracy"] == straight["initial_accuracy"]
    lines = RunFolder(tmp_path / "straight").rounds.read_text().splitlines()
    scores = [json.loads(line)["metrics"]["accuracy"] for line in lines]
    assert len(scores) == 2 and straight["best_accuracy"] == max(scores)


def test_it_can_be_switched_off_and_changes_no_round(tmp_path):
    on, off = run(tmp_path, "on"), run(tmp_path, "off", eval_first=False)
    assert "initial_accuracy" in on and "initial_accuracy" not in off
    assert not RunFolder(tmp_path / "off").initial.exists()
    assert on["delta_digest"] == off["delta_digest"]


def records(tmp_path: Path, out: str) -> list[dict[str, object]]:
    lines = RunFolder(tmp_path / out).rounds.read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]


def test_more_rounds_leave_no_evaluation_that_a_straight_run_lacks(tmp_path):
    asked = {"eval_every": 2, "evaluate_clients": True}
    straight = run(tmp_path, "straight", rounds=5, **asked)
    run(tmp_path, "resumed", rounds=3, **asked)
    assert "accuracy" in records(tmp_path, "resumed")[-1]["metrics"]
    resumed = run(tmp_path, "resumed", resume=True, rounds=5, **asked)
    assert records(tmp_path, "resumed") == records(tmp_path, "straight")
    assert ["accuracy" in each["metrics"] for each in records(tmp_path, "resumed")] == [
        False, True, False, True, True,
    ]  # fmt: skip
    assert all(resumed[k] == straight[k] for k in straight if k not in ("seconds", "run_dir"))


def test_a_folder_from_before_the_key_is_the_same_experiment():
    plain, off = Experiment(), Experiment().changed(federation={"eval_first": False})
    assert experiment_digest(plain) == experiment_digest(off)
    other = Experiment().changed(federation={"eval_every": 2})
    assert experiment_digest(plain) != experiment_digest(other)
