"""Small model folders, built once."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import ViTConfig, ViTForImageClassification


@pytest.fixture(scope="session")
def tiny_vit() -> ViTForImageClassification:
    """A ViT of 2 blocks of width 16 for 8x8 gray images, 3 classes, with dropout in its config."""
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=8,
        patch_size=4,
        num_channels=1,
        num_labels=3,
        hidden_dropout_prob=0.1,
        attention_probs_dropout_prob=0.1,
    )
    model = ViTForImageClassification(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.fixture(scope="session")
def write_folder() -> Callable[[Path, nn.Module, dict[str, torch.Tensor]], Path]:
    """Write a model folder whose tensors have exactly the names that are given."""

    def write(folder: Path, module: nn.Module, tensors: dict[str, torch.Tensor]) -> Path:
        folder.mkdir(parents=True)
        config = {**module.config.to_dict(), "architectures": [type(module).__name__]}
        (folder / "config.json").write_text(json.dumps(config))
        copies = {name: tensor.clone() for name, tensor in tensors.items()}
        save_file(copies, folder / "model.safetensors", metadata={"format": "pt"})
        return folder

    return write


@pytest.fixture(scope="session")
def vit_folder(tiny_vit, write_folder, tmp_path_factory) -> Path:
    """The small ViT with the names of `transformers` 5."""
    return write_folder(tmp_path_factory.mktemp("models") / "v5", tiny_vit, tiny_vit.state_dict())


@pytest.fixture(scope="session")
def old_vit_folder(tiny_vit, write_folder, tmp_path_factory) -> Path:
    """The small ViT with the names of `transformers` 4."""
    tensors = {old_vit_name(name): tensor for name, tensor in tiny_vit.state_dict().items()}
    return write_folder(tmp_path_factory.mktemp("models") / "v4", tiny_vit, tensors)


def old_vit_name(name: str) -> str:
    """Name a tensor of a ViT as `transformers` 4 did."""
    for new, old in (
        ("vit.layers.", "vit.encoder.layer."),
        (".attention.q_proj.", ".attention.attention.query."),
        (".attention.k_proj.", ".attention.attention.key."),
        (".attention.v_proj.", ".attention.attention.value."),
        (".attention.o_proj.", ".attention.output.dense."),
        (".mlp.fc1.", ".intermediate.dense."),
        (".mlp.fc2.", ".output.dense."),
    ):
        name = name.replace(new, old)
    return name
