import json

import finished_runs
import pytest
import torch
from safetensors.torch import load_file, save_file

import fedpeft
from fedpeft.core.errors import DeltaMismatchError, RunFolderError
from fedpeft.export.export import export_run
from fedpeft.runs.load import load_run


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return finished_runs.model_folder("vit", tmp_path_factory.mktemp("vit"))


@pytest.fixture
def run(model, tmp_path):
    chosen = finished_runs.experiment(model, "vit", "bias")
    return finished_runs.write_finished(tmp_path / "run", chosen)


def test_load_gives_the_final_delta_in_eval_mode(run):
    finished = load_run(run)
    saved = load_file(run / "delta.safetensors")
    assert all(torch.equal(finished.tuned.parameters[name], saved[name]) for name in saved)
    assert not fedpeft.load(str(run)).training


def test_loading_leaves_the_global_generator_alone(run):
    before = torch.random.get_rng_state()
    fedpeft.load(run)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_folder_of_neither_kind_is_refused(tmp_path):
    with pytest.raises(RunFolderError, match="neither a run folder"):
        fedpeft.load(tmp_path)


def test_a_run_without_its_delta_is_refused(run):
    (run / "delta.safetensors").unlink()
    with pytest.raises(RunFolderError, match=r"delta\.safetensors is missing"):
        fedpeft.load(run)


def test_a_torn_delta_is_refused(run):
    whole = (run / "delta.safetensors").read_bytes()
    (run / "delta.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(RunFolderError, match="no whole safetensors file"):
        fedpeft.load(run)


def test_a_changed_delta_is_refused(run):
    tensors = load_file(run / "delta.safetensors")
    tensors["head.bias"] += 1
    save_file(tensors, run / "delta.safetensors")
    with pytest.raises(RunFolderError, match="the file was changed"):
        fedpeft.load(run)


def test_a_delta_of_another_method_is_refused(run):
    tensors = load_file(run / "delta.safetensors")
    save_file({"head.bias": tensors["head.bias"]}, run / "delta.safetensors")
    with pytest.raises(DeltaMismatchError, match="missing"):
        fedpeft.load(run)


def test_an_export_with_another_backbone_is_refused(model, tmp_path):
    chosen = finished_runs.experiment(model, "vit", "lora", r=2)
    run = finished_runs.write_finished(tmp_path / "run", chosen)
    folder = export_run(run, tmp_path / "out")
    file = folder / "base" / "model.safetensors"
    tensors = load_file(file)
    name = next(name for name in sorted(tensors) if "classifier" not in name)
    save_file({**tensors, name: tensors[name] + 1}, file, {"format": "pt"})
    with pytest.raises(RunFolderError, match="other weights"):
        fedpeft.load(folder)


def test_a_corrupt_export_is_refused(run, tmp_path):
    folder = export_run(run, tmp_path / "out")
    found = json.loads((folder / "fedpeft.json").read_text())
    (folder / "fedpeft.json").write_text(json.dumps({**found, "format": "other"}))
    with pytest.raises(RunFolderError, match="Export the run again"):
        fedpeft.load(folder)


def test_files_of_another_version_are_called_that(run, tmp_path):
    folder = export_run(run, tmp_path / "out")
    found = json.loads((folder / "fedpeft.json").read_text())
    (folder / "fedpeft.json").write_text(json.dumps({**found, "format": "fedpeft-export-2"}))
    with pytest.raises(RunFolderError, match=r"by another version .* 'fedpeft-export-2'"):
        fedpeft.load(folder)
    file = run / "delta.safetensors"
    save_file(load_file(file), file, {"format": "fedpeft-delta-2"})
    with pytest.raises(RunFolderError, match=r"by another version .* 'fedpeft-delta-2'"):
        fedpeft.load(run)
