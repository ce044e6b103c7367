"""The small self-supervised backbones in the repository: complete, small, and not in the wheel."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fedpeft.models.source import ModelRequest, load_model

ROOT = Path(__file__).parents[2]
BACKBONES = sorted((ROOT / "backbones").glob("vit-glyphs-8-*"))


def test_both_are_there():
    assert [folder.name for folder in BACKBONES] == ["vit-glyphs-8-mae", "vit-glyphs-8-moco"]


@pytest.mark.parametrize("folder", BACKBONES, ids=lambda folder: folder.name)
def test_a_backbone_is_small_and_every_tensor_is_loaded(folder):
    from transformers import ViTModel

    stored = ViTModel.from_pretrained(folder, add_pooling_layer=False).state_dict()
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 4_000_000
    loaded = load_model(ModelRequest(str(folder), num_labels=10, seed=1))
    state = {name.removeprefix("vit."): value for name, value in loaded.module.state_dict().items()}
    assert len(stored) > 60
    for name, tensor in stored.items():
        assert torch.equal(state[name], tensor), name
