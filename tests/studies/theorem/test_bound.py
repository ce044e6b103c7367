"""Theorem 1 on real runs: the bound holds, its parts are right, and it can fail."""

from __future__ import annotations

import json

import pytest
import safetensors.torch
import torch

from fedpeft.cli import main
from fedpeft.core.errors import RunFolderError
from fedpeft.experiment.experiment import Experiment
from fedpeft.launch.start import run
from fedpeft.plan.plan import make_plan
from fedpeft.runs.folder import RunFolder
from fedpeft.studies.theorem.bound import TheoremRequest, check_theorem, control
from fedpeft.studies.theorem.smoothness import Search

REQUEST = TheoremRequest(sample=24, search=Search(points=3, iterations=15))


def experiment(method: str, rounds: int = 2, *, keep: bool = True) -> Experiment:
    return Experiment.model_validate(
        {
            "model": {"name": "preset:tiny-vit"},
            "tuning": {"method": method},
            "data": {"partition": {"clients": 4, "alpha": 1.0}},
            "federation": {"rounds": rounds, "clients_per_round": 2},
            "client": {"epochs": 1, "lr": 0.05},
            "engine": {"workers": 1},
            "run": {"keep_deltas": keep},
        }
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "bias"
    return folder, run(experiment("bias"), folder)


def test_kept_deltas_are_the_start_and_each_round(finished, tmp_path):
    folder, summary = finished
    names = [file.name for file in sorted((folder / "deltas").iterdir())]
    assert names == [f"round-0000{number}.safetensors" for number in range(3)]
    last, final = (
        safetensors.torch.load_file(file)
        for file in (folder / "deltas" / names[-1], folder / "delta.safetensors")
    )
    assert last.keys() == final.keys() and all(torch.equal(last[n], final[n]) for n in final)
    plain = run(experiment("bias", keep=False), tmp_path / "plain")
    assert plain["delta_digest"] == summary["delta_digest"]
    assert not (tmp_path / "plain" / "deltas").exists()


def test_resume_goes_on_keeping(finished, tmp_path):
    run(experiment("bias", 1), tmp_path / "run")
    run(experiment("bias", 2), tmp_path / "run", resume=True)
    for file in (finished[0] / "deltas").iterdir():
        straight, resumed = (
            safetensors.torch.load_file(path)
            for path in (file, tmp_path / "run/deltas" / file.name)
        )
        assert all(torch.equal(straight[name], resumed[name]) for name in straight)


def test_frozen_backbone_has_no_theta_part(finished):
    found = check_theorem(finished[0], REQUEST)
    assert found["holds"] and [row["round"] for row in found["rounds"]] == [1, 2]
    assert found["theta_is_frozen"] and found["theta_parameters"] > found["delta_parameters"] > 0
    for row in found["rounds"]:
        assert row["p_theta"] == 0 == row["inner_theta"] and row["p_delta"] > 0
        assert row["bound"] == pytest.approx(row["loss_end"] + row["slack"])
    assert found == json.loads((finished[0] / "theorem.json").read_text())
    assert "<svg" in (finished[0] / "theorem.svg").read_text()


def test_full_fine_tuning_has_both_parts(tmp_path):
    run(experiment("full", 1), tmp_path / "run")
    (row,) = check_theorem(tmp_path / "run", REQUEST)["rounds"]
    assert row["holds"] and row["p_theta"] > 0 and row["p_delta"] > 0
    tensors = [
        safetensors.torch.load_file(tmp_path / "run" / "deltas" / f"round-0000{number}.safetensors")
        for number in range(2)
    ]
    moved = {n: (tensors[1][n] - tensors[0][n]).double().square().sum() for n in tensors[0]}
    head = sum(float(x) for name, x in moved.items() if name.startswith("head."))
    assert row["square_delta"] == pytest.approx(head)
    assert row["square_theta"] == pytest.approx(sum(map(float, moved.values())) - head)


def test_a_hundredth_of_beta_is_caught():
    assert control() == {"holds": True, "equality": True, "hundredth_holds": False}


def test_a_run_without_deltas_is_refused(tmp_path):
    run(experiment("head", 1, keep=False), tmp_path / "run")
    with pytest.raises(RunFolderError, match=r"not kept its deltas.*--set run.keep_deltas=true"):
        check_theorem(tmp_path / "run", REQUEST)


def test_a_missing_or_changed_delta_is_refused(tmp_path):
    run(experiment("head", 1), tmp_path / "run")
    file = RunFolder(tmp_path / "run").deltas / "round-00001.safetensors"
    whole = bytearray(file.read_bytes())
    whole[-1] ^= 1
    file.write_bytes(whole)
    with pytest.raises(RunFolderError, match="does not match the digest"):
        check_theorem(tmp_path / "run", REQUEST)
    file.unlink()
    with pytest.raises(RunFolderError, match=r"round-00001.safetensors: cannot be read"):
        check_theorem(tmp_path / "run", REQUEST)


def test_plan_counts_kept_deltas():
    figures = make_plan(experiment("bias", 5)).figures
    assert figures["kept_deltas_bytes"] == 6 * figures["payload_bytes"]
    assert make_plan(experiment("bias", keep=False)).figures["kept_deltas_bytes"] == 0


def test_the_command_prints_a_line_a_round(finished, capsys):
    with pytest.raises(SystemExit) as end:
        main(["theorem", str(finished[0]), "--sample", "8", "--every", "2", "--points", "2"])
    out = capsys.readouterr().out
    assert not end.value.code and out.splitlines()[1].split()[0] == "2" and "caught" in out


@pytest.mark.parametrize("mode", ["central", "example"])
def test_figures_of_a_private_run_are_said_to_be_not_private(mode, tmp_path, finished):
    chosen = experiment("head", 1).model_dump(exclude_none=True)
    chosen["privacy"] = {"mode": mode, "noise_multiplier": 1.0}
    run(Experiment.model_validate(chosen), tmp_path / "run")
    assert "not private" in check_theorem(tmp_path / "run", REQUEST)["note"]
    assert "not private" not in check_theorem(finished[0], REQUEST)["note"]  # nothing was promised
