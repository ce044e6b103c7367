"""A grown model answers for a picture as the small one does for the shrunk picture."""

from __future__ import annotations

import pytest
import torch
from transformers import ViTConfig, ViTForImageClassification, ViTModel

from growing import grow, shrinking

SHAPE = {
    "num_channels": 1,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}


def test_shrinking_is_by_area():
    assert torch.allclose(shrinking(2, 7).sum(dim=1), torch.ones(2))
    assert torch.allclose(shrinking(2, 7)[0] * 7, torch.tensor([2.0, 2, 2, 1, 0, 0, 0]))
    assert torch.equal(shrinking(3, 3), torch.eye(3))


@pytest.mark.parametrize("patch", [4, 7])
def test_features_of_a_picture_are_those_of_the_shrunk_picture(tmp_path, patch):
    torch.manual_seed(0)
    small = ViTModel(ViTConfig(image_size=8, patch_size=2, **SHAPE), add_pooling_layer=False).eval()
    small.save_pretrained(tmp_path)
    config = ViTConfig(image_size=4 * patch, patch_size=patch, num_labels=3, **SHAPE)
    large = ViTForImageClassification(config).eval()
    picture = torch.rand(2, 1, 4 * patch, 4 * patch)
    area = torch.block_diag(*[shrinking(2, patch)] * 4)
    wanted = small(pixel_values=area @ picture @ area.T).last_hidden_state
    assert not torch.allclose(large.vit(pixel_values=picture).last_hidden_state, wanted, atol=1e-2)
    grow(large, tmp_path)
    assert torch.allclose(large.vit(pixel_values=picture).last_hidden_state, wanted, atol=1e-5)
    assert large(pixel_values=picture).logits.abs().max() == 0
