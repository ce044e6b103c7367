"""What the pretraining minimises, and the networks that it needs beside the backbone.

    supervised   cross-entropy of the glyph's class, with label smoothing
    mae          He et al., CVPR 2022: 12 of 16 patches are hidden, a small decoder draws them again
    moco         Chen, Xie, He, ICCV 2021 (MoCo v3): two drawings of a glyph agree, against those of
                 the other glyphs of the batch; keys come from a moving average of the network

Every network has the backbone under the name `vit`; only that is exported, and for `supervised`
its classifier too. The self-supervised ones never see a label, not even to balance a batch.
Legend of shape suffixes: B pictures, F features.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    PreTrainedModel,
    ViTConfig,
    ViTForImageClassification,
    ViTMAEConfig,
    ViTMAEForPreTraining,
    ViTModel,
)

__all__ = ["OBJECTIVES", "SHAPES", "Batch", "Objective", "Shape"]

_MASKED = 0.75  # share of the patches, as in the paper's Sec. 4.1
_TEMPERATURE = 0.2
_MOMENTUM = 0.99  # at the start; rises to 1 along a cosine
_PROJECTED = 64
_HIDDEN = 512


Shape: TypeAlias = Mapping[str, int]

SHAPES: Mapping[int, Shape] = {
    8: {
        "image_size": 8,
        "patch_size": 2,
        "num_channels": 1,
        "hidden_size": 128,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "intermediate_size": 512,
    },
    28: {
        "image_size": 28,
        "patch_size": 7,
        "num_channels": 1,
        "hidden_size": 128,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "intermediate_size": 512,
    },
}
"""Settings of the vision transformer by the side of its pictures: 16 patches and a class token."""


@dataclass(frozen=True)
class Batch:
    """The pictures of one step.

    Attributes:
      views: one or two drawings of each glyph, normalised, [B, 1, side, side].
      labels: int64 [B].
      generator: for what a loss draws itself.
      progress: share of the schedule that is behind, 0..1.
    """

    views: Sequence[Tensor]
    labels: Tensor
    generator: torch.Generator
    progress: float


@dataclass(frozen=True)
class Objective:
    """A way of pretraining.

    Attributes:
      about: one line for the model card.
      build: makes the network from the labels and a row of `SHAPES`.
      loss: of one batch, in nats or squared error.
      follow: changes what is not trained by gradients, after each step.
      views: drawings of each glyph in a batch.
      balanced: whether labels, instead of glyphs, are drawn evenly.
      lr: peak learning rate unless told otherwise.
      steps: length of the schedule unless told otherwise.
    """

    about: str
    build: Callable[[Sequence[str], Shape], nn.Module]
    loss: Callable[[nn.Module, Batch], Tensor]
    follow: Callable[[nn.Module, float], None] = lambda network, progress: None
    views: int = 1
    balanced: bool = False
    lr: float = 1e-3
    steps: int = 18_000

    def exported(self, network: nn.Module) -> PreTrainedModel:
        """Return the part that goes into the model folder."""
        if isinstance(network, ViTForImageClassification):
            return network
        inner = cast(PreTrainedModel, network.vit)
        shape = {key: getattr(inner.config, key) for key in SHAPES[8]}
        backbone = ViTModel(_config(shape), add_pooling_layer=False)
        backbone.load_state_dict(inner.state_dict())
        return backbone.train(network.training)


def _config(shape: Shape, **more: object) -> ViTConfig:
    return ViTConfig(
        **shape,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        initializer_range=0.08,  # about 1 / sqrt(128); the default of 0.02 starts far more slowly
        **more,
    )


def _classifier(labels: Sequence[str], shape: Shape) -> nn.Module:
    return ViTForImageClassification(
        _config(
            shape,
            id2label=dict(enumerate(labels)),
            label2id={label: number for number, label in enumerate(labels)},
        )
    )


def _cross_entropy(network: nn.Module, batch: Batch) -> Tensor:
    logits = network(pixel_values=batch.views[0]).logits
    return functional.cross_entropy(logits, batch.labels, label_smoothing=0.1)


def _autoencoder(labels: Sequence[str], shape: Shape) -> nn.Module:
    config = ViTMAEConfig(
        **shape,
        layer_norm_eps=1e-12,
        initializer_range=0.08,
        mask_ratio=_MASKED,
        norm_pix_loss=False,  # a patch has four pixels, too few for a deviation of its own
        decoder_hidden_size=64,
        decoder_num_hidden_layers=2,
        decoder_num_attention_heads=4,
        decoder_intermediate_size=256,
    )
    network = ViTMAEForPreTraining(config)
    positions = [network.vit.embeddings.position_embeddings, network.decoder.decoder_pos_embed]
    for parameter in (*positions, network.decoder.mask_token):  # transformers 5.23 leaves zeros
        nn.init.normal_(parameter.requires_grad_(True), std=0.08)
    return network


def _reconstruction(network: nn.Module, batch: Batch) -> Tensor:
    pictures = batch.views[0]
    noise = torch.rand(len(pictures), 16, generator=batch.generator)
    return cast(Tensor, network(pixel_values=pictures, noise=noise).loss)


class _Contrast(nn.Module):
    """Query network, and key network that follows it; the class token speaks for a picture."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.vit = ViTModel(_config(shape), add_pooling_layer=False)
        self.vit.embeddings.patch_embeddings.requires_grad_(False)  # steadier: Sec. 4.1 there
        self.projector = _mlp(shape["hidden_size"], 3)
        self.predictor = _mlp(_PROJECTED, 2)
        self.key_vit = copy.deepcopy(self.vit).requires_grad_(False)
        self.key_projector = copy.deepcopy(self.projector).requires_grad_(False)

    def queries(self, pictures: Tensor) -> Tensor:
        features = self.vit(pixel_values=pictures).last_hidden_state[:, 0]
        return functional.normalize(self.predictor(self.projector(features)), dim=1)

    @torch.no_grad()
    def keys(self, pictures: Tensor) -> Tensor:
        features = self.key_vit(pixel_values=pictures).last_hidden_state[:, 0]
        return functional.normalize(self.key_projector(features), dim=1)


def _mlp(width: int, depth: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for _ in range(depth - 1):
        layers += [nn.Linear(width, _HIDDEN, bias=False), nn.BatchNorm1d(_HIDDEN), nn.ReLU()]
        width = _HIDDEN
    return nn.Sequential(
        *layers, nn.Linear(width, _PROJECTED, bias=False), nn.BatchNorm1d(_PROJECTED, affine=False)
    )


def _contrast(labels: Sequence[str], shape: Shape) -> nn.Module:
    return _Contrast(shape)


def _contrastive(network: nn.Module, batch: Batch) -> Tensor:
    network = cast(_Contrast, network)
    first, second = batch.views
    queries = network.queries(torch.cat([first, second])).chunk(2)
    keys = network.keys(torch.cat([second, first])).chunk(2)
    right = torch.arange(len(first))
    losses = [
        functional.cross_entropy(query @ key.T / _TEMPERATURE, right)
        for query, key in zip(queries, keys, strict=True)
    ]
    return 2 * _TEMPERATURE * torch.stack(losses).mean()


@torch.no_grad()
def _follow(network: nn.Module, progress: float) -> None:
    """Move the key network towards the query network."""
    network = cast(_Contrast, network)
    stay = 1 - (1 - _MOMENTUM) * (math.cos(math.pi * progress) + 1) / 2
    pairs = [(network.key_vit, network.vit), (network.key_projector, network.projector)]
    for follower, leader in pairs:
        for slow, fast in zip(follower.parameters(), leader.parameters(), strict=True):
            slow.lerp_(fast, 1 - stay)


OBJECTIVES: Mapping[str, Objective] = {
    "supervised": Objective(
        about="cross-entropy with label smoothing 0.1",
        build=_classifier,
        loss=_cross_entropy,
        balanced=True,
        lr=2e-3,
    ),
    "mae": Objective(
        about="masked autoencoder: 12 of 16 patches hidden, squared error of their pixels",
        build=_autoencoder,
        loss=_reconstruction,
    ),
    "moco": Objective(
        about="MoCo v3: two drawings of a glyph agree, temperature 0.2, momentum 0.99 rising to 1",
        build=_contrast,
        loss=_contrastive,
        follow=_follow,
        views=2,
        steps=6_000,
    ),
}
