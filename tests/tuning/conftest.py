"""Small models of each kind, built from a config, and batches for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from fedpeft.models.families import PLAIN, family_of
from fedpeft.models.loaded import LoadedModel
from fedpeft.models.tasks import (
    CAUSAL_LM,
    IMAGE_CLASSIFICATION,
    TEXT_CLASSIFICATION,
    VIDEO_CLASSIFICATION,
    Batch,
)

Make = Callable[..., LoadedModel]


@dataclass(frozen=True)
class Output:
    logits: Tensor


class Plain(nn.Module):
    """A module without a `transformers` config."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 32)
        self.norm = nn.LayerNorm(32)
        self.second = nn.Linear(32, 32)
        self.top = nn.Linear(32, 3)

    def forward(self, x: Tensor) -> Output:
        hidden = torch.relu(self.norm(torch.relu(self.first(x))))
        return Output(self.top(torch.relu(self.second(hidden))))


class Normed(nn.Module):
    """A small convolutional net with BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.bn = nn.BatchNorm2d(4)
        self.top = nn.Linear(4, 3)

    def forward(self, pixel_values: Tensor) -> Output:
        return Output(self.top(torch.relu(self.bn(self.conv(pixel_values))).mean((2, 3))))


def _vit(**config: object) -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    small = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "image_size": 16,
        "patch_size": 8,
        "num_labels": 3,
    }
    return ViTForImageClassification(ViTConfig(**{**small, **config}))


def _videomae(**config: object) -> nn.Module:
    from transformers import VideoMAEConfig, VideoMAEForVideoClassification

    small = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "image_size": 8,
        "patch_size": 4,
        "num_frames": 4,
        "tubelet_size": 2,
        "num_labels": 3,
    }
    return VideoMAEForVideoClassification(VideoMAEConfig(**{**small, **config}))


def _bert(**config: object) -> nn.Module:
    from transformers import BertConfig, BertForSequenceClassification

    small = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "vocab_size": 50,
        "max_position_embeddings": 40,
        "num_labels": 3,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    return BertForSequenceClassification(BertConfig(**{**small, **config}))


def _llama(**config: object) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    small = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "intermediate_size": 64,
        "vocab_size": 50,
        "max_position_embeddings": 40,
    }
    return LlamaForCausalLM(LlamaConfig(**{**small, **config}))


_MODULES: dict[str, Callable[..., nn.Module]] = {
    "vit": _vit,
    "videomae": _videomae,
    "bert": _bert,
    "llama": _llama,
    "plain": Plain,
    "normed": Normed,
}
_TASKS = {
    "bert": TEXT_CLASSIFICATION,
    "llama": CAUSAL_LM,
    "videomae": VIDEO_CLASSIFICATION,
}
_HEADS = {"llama": ("lm_head",), "plain": ("top",), "normed": ("top",)}


def make_loaded(kind: str, *, meta: bool = False, seed: int = 0, **config: object) -> LoadedModel:
    """Build a model of a kind, with weights from `seed`."""
    with torch.random.fork_rng(devices=[]), torch.device("meta" if meta else "cpu"):
        torch.manual_seed(seed)
        module = _MODULES[kind](**config).eval()
    fresh = {"bert.pooler.dense.weight", "bert.pooler.dense.bias"} if kind == "bert" else set()
    return LoadedModel(
        module=module,
        task=_TASKS.get(kind, IMAGE_CLASSIFICATION),
        family=PLAIN if kind in ("plain", "normed") else family_of(module),
        head=_HEADS.get(kind, ("classifier",)),
        inputs=None,
        source=f"tiny-{kind}",
        fresh=frozenset(fresh),
    )


def make_batch(kind: str) -> Batch:
    """Four examples for a model of a kind."""
    draw = torch.Generator().manual_seed(7)
    labels = torch.tensor([0, 1, 2, 0])
    if kind in ("vit", "normed"):
        return {"pixel_values": torch.randn(4, 3, 16, 16, generator=draw), "labels": labels}
    if kind == "videomae":
        return {"pixel_values": torch.randn(4, 4, 3, 8, 8, generator=draw), "labels": labels}
    if kind == "plain":
        return {"x": torch.randn(4, 8, generator=draw), "labels": labels}
    tokens = torch.randint(0, 50, (4, 9), generator=draw)
    mask = torch.ones_like(tokens)
    mask[0, 6:] = 0
    targets = tokens.masked_fill(mask == 0, -100) if kind == "llama" else labels
    return {"input_ids": tokens, "attention_mask": mask, "labels": targets}


@pytest.fixture(scope="session")
def make() -> Make:
    """The function `make_loaded(kind, *, meta, seed, **config)`."""
    return make_loaded


@pytest.fixture(scope="session")
def batch_for() -> Callable[[str], Batch]:
    """The function `make_batch(kind)`."""
    return make_batch
