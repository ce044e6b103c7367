"""The features of several runs in one plane: labels, the same examples, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from finished_runs import experiment, write_finished

from fedpeft.cli import main
from fedpeft.core.errors import ConfigError, RunFolderError
from fedpeft.studies.gap.features import (
    GapRequest,
    RunsRequest,
    label_runs,
    read_features,
    read_run_features,
)
from fedpeft.studies.gap.measures import linear_mmd, measure_gap

METHODS = ("head", "bias", "full", "prompt", "lora")


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("runs")
    found = {m: write_finished(root / m, experiment("preset:tiny-vit", "vit", m)) for m in METHODS}
    other = experiment("preset:tiny-vit", "vit", "bias")
    moved = other.model_copy(update={"data": other.data.model_copy(update={"source": "glyphs"})})
    return found | {"glyphs": write_finished(root / "glyphs", moved)}


def chosen(runs: dict[str, Path], *labels: str) -> dict[str, Path]:
    return {label: runs[label] for label in labels}


def test_head_tuning_leaves_the_backbones_own_features_and_others_move_them(runs):
    found = read_run_features(RunsRequest(chosen(runs, *METHODS), sample=40, seed=2))
    assert found.methods == {m: m for m in METHODS} and found.source == "digits"
    own = read_features(GapRequest("preset:tiny-vit", {"d": "digits"}))["d"]
    head = found.rows["head"]
    assert all(np.abs(own - row).max(1).min() < 1e-5 for row in head)
    for method in METHODS[1:]:
        assert found.rows[method].shape == head.shape == (40, 16)
        assert found.rows[method] != pytest.approx(head, abs=1e-3)
    gap = measure_gap(found.rows, "head", paired=True)
    assert all(row["head"] == 0 for row in gap.distances.values())
    assert all(gap.distances["raw"][m] > 0 for m in METHODS[1:])


def test_runs_of_one_method_on_one_delta_are_at_one_point(runs):
    pair = {"one": runs["bias"], "two": runs["bias"], "far": runs["full"], "other": runs["lora"]}
    found = read_run_features(RunsRequest(pair, sample=60))
    distances = measure_gap(found.rows, "one", paired=True).distances
    for name, row in distances.items():
        allowed = 1e-6 if name != "mmd" else 1e-3 * row["far"]
        assert abs(row["two"]) <= allowed < row["far"]


def test_paired_mmd_is_unbiased_where_the_other_estimate_is_not():
    rng = np.random.default_rng(5)
    draws = []
    for _ in range(400):
        base = 3 * rng.normal(size=(8, 4))
        one, two = base, base + np.array([1.0, 0, 0, 0]) + 0.1 * rng.normal(size=(8, 4))
        draws.append((linear_mmd(one, two, paired=True), linear_mmd(one, two)))
    paired, other = np.mean(draws, 0)
    assert paired == pytest.approx(1.0, abs=0.1) and other < -5


def test_labels_are_folder_names_or_given(tmp_path):
    (tmp_path / "a=b").mkdir()
    found = label_runs([str(tmp_path / "x"), f"mine={tmp_path}/y", str(tmp_path / "a=b")])
    assert list(found) == ["x", "mine", "a=b"] and found["mine"] == tmp_path / "y"
    with pytest.raises(ConfigError, match=r"two runs are called 'x'.*NAME=DIR"):
        label_runs(["here/x", "there/x"])


def test_runs_on_other_examples_are_refused(runs):
    request = RunsRequest(chosen(runs, "head", "bias", "glyphs"))
    with pytest.raises(ConfigError, match=r"data.source is 'digits' in 'head' and 'glyphs'"):
        read_run_features(request)


def test_what_is_no_run_is_refused(tmp_path, runs):
    with pytest.raises(RunFolderError, match=r"experiment\.toml"):
        read_run_features(RunsRequest({"a": tmp_path, **chosen(runs, "head", "bias")}))
    with pytest.raises(ConfigError, match="found no runs"):
        read_run_features(RunsRequest({}))
    with pytest.raises(ConfigError, match=r"--split: found 'dev'; allowed are test, train"):
        read_run_features(RunsRequest(chosen(runs, "head"), split="dev"))


def test_the_command_writes_picture_and_measures(runs, tmp_path, capsys):
    folders = [str(runs[m]) for m in ("bias", "head", "full")]
    args = ["--reference", "head", "--sample", "80", "--out", str(tmp_path), "--json"]
    with pytest.raises(SystemExit) as end:
        main(["gap", *folders, *args])
    found = json.loads(capsys.readouterr().out)
    assert not end.value.code and found == json.loads((tmp_path / "gap.json").read_text())
    assert found["methods"] == {m: m for m in ("bias", "head", "full")}
    assert found["unbalanced"] == found["balanced"]
    assert found["unbalanced"]["distances"]["lda2"]["head"] == 0
    svg = (tmp_path / "gap.svg").read_text()
    assert (tmp_path / "gap.png").stat().st_size > 1000
    assert "preset:tiny-vit on digits" in svg and "bias: " in svg


@pytest.mark.parametrize(("args", "message"), [
    ([], "found nothing to compare"),
    (["a", "b"], "found 2 runs (a, b); a plane needs at least 3"),
    (["a", "b", "c", "--data", "digits"], "--data was given with run folders"),
    (["a", "b", "c", "--model", "x"], "--model was given with run folders"),
    (["a", "b", "c", "--reference", "d"], "--reference: no run 'd'; found are a, b, c"),
])  # fmt: skip
def test_wrong_options_are_explained(args, message, capsys):
    with pytest.raises(SystemExit) as end:
        main(["gap", *args])
    assert end.value.code == 2 and message in capsys.readouterr().err
