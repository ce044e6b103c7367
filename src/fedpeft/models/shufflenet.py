"""ShuffleNetV2: a small convolutional network, the paper's baseline of low communication cost.

    stem ── stage2 ── stage3 ── stage4 ── conv5 ── mean ── fc

    unit, stride 1:  x ─┬─ left half ───────────────────────────┐
                        └─ right half ─ 1x1 ─ depthwise ─ 1x1 ──┴─ shuffle
    unit, stride 2:  x ─┬─ depthwise ─ 1x1 ─────────────────────┐
                        └─ 1x1 ─ depthwise ─ 1x1 ───────────────┴─ shuffle

With the width x0.5 and 100 classes: 444,292 weights and 7,952 running statistics. The module tree
has the customary names (`conv1`, `stage2` ... `conv5`, `fc`), so public weights fit it.

Reference: Ma, Zhang, Zheng, Sun, ShuffleNet V2: Practical Guidelines for Efficient CNN Architecture
Design, ECCV 2018.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fedpeft.core.errors import ModelError
from fedpeft.core.text import plain
from fedpeft.models.reading import read_object, reading

_MOST = 2**16
"""Largest number in a config: units of a stage, or channels."""


@dataclass(frozen=True)
class ShuffleNetConfig:
    """The shape of a ShuffleNetV2.

    Attributes:
      num_labels: number of classes; >= 1.
      num_channels: number of channels of an image.
      image_size: default height and width of an image, in pixels.
      repeats: number of units in each of the three stages.
      widths: output channels of the stem, of the stages (even numbers) and of `conv5`.
      stem_stride: 2, or 1 for small images.
      stem_pool: whether the stem ends in a max pooling of stride 2.
    """

    model_type: ClassVar[str] = "shufflenet-v2"
    num_labels: int = 1000
    num_channels: int = 3
    image_size: int = 224
    repeats: tuple[int, int, int] = (4, 8, 4)
    widths: tuple[int, int, int, int, int] = (24, 48, 96, 192, 1024)
    stem_stride: int = 2
    stem_pool: bool = True


@dataclass(frozen=True)
class ImageLogits:
    """The output of the model: `logits` [B, num_labels]."""

    logits: Tensor


class ShuffleNet(nn.Module):
    """The network; called as `model(pixel_values=x)` with x [B, channels, height, width].

    Args:
      config: its shape.

    Raises:
      ModelError: if a stage has an odd number of channels, which cannot be halved.
    """

    def __init__(self, config: ShuffleNetConfig) -> None:
        """Build the layers, each with torch's own initialisation."""
        super().__init__()
        odd = [width for width in config.widths[1:4] if width % 2]
        if odd:
            raise ModelError(f"shufflenet: widths {odd} of the stages are odd; give even numbers")
        self.config = config
        stem, *stages, last = config.widths
        self.conv1 = _conv_norm(config.num_channels, stem, kernel=3, stride=config.stem_stride)
        self.maxpool = nn.MaxPool2d(3, 2, 1) if config.stem_pool else nn.Identity()
        self.stage2 = _stage(stem, stages[0], config.repeats[0])
        self.stage3 = _stage(stages[0], stages[1], config.repeats[1])
        self.stage4 = _stage(stages[1], stages[2], config.repeats[2])
        self.conv5 = _conv_norm(stages[2], last, kernel=1, stride=1)
        self.fc = nn.Linear(last, config.num_labels)

    def forward(self, pixel_values: Tensor) -> ImageLogits:
        """Classify images [B, channels, height, width]."""
        x = self.maxpool(self.conv1(pixel_values))
        x = self.conv5(self.stage4(self.stage3(self.stage2(x))))
        return ImageLogits(self.fc(x.mean((2, 3))))


class _Unit(nn.Module):
    """One unit; with stride 2 both branches take all channels and both are convolved."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        half = channels_out // 2
        self.stride = stride
        self.branch1 = (
            nn.Sequential(
                *_depthwise(channels_in, stride), *_conv_norm(channels_in, half, kernel=1, stride=1)
            )
            if stride == 2
            else nn.Sequential()
        )
        self.branch2 = nn.Sequential(
            *_conv_norm(channels_in if stride == 2 else half, half, kernel=1, stride=1),
            *_depthwise(half, stride),
            *_conv_norm(half, half, kernel=1, stride=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        left, right = (x, x) if self.stride == 2 else x.chunk(2, dim=1)
        return _shuffle(torch.cat((self.branch1(left), self.branch2(right)), dim=1))


def _shuffle(x: Tensor) -> Tensor:
    """Interleave the two halves of the channels."""
    batch, channels, height, width = x.shape
    return x.view(batch, 2, channels // 2, height, width).transpose(1, 2).flatten(1, 2)


def _stage(channels_in: int, channels_out: int, repeats: int) -> nn.Sequential:
    rest = [_Unit(channels_out, channels_out, 1) for _ in range(repeats - 1)]
    return nn.Sequential(_Unit(channels_in, channels_out, 2), *rest)


def _conv_norm(channels_in: int, channels_out: int, *, kernel: int, stride: int) -> nn.Sequential:
    conv = nn.Conv2d(channels_in, channels_out, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(channels_out), nn.ReLU())


def _depthwise(channels: int, stride: int) -> nn.Sequential:
    conv = nn.Conv2d(channels, channels, 3, stride, 1, groups=channels, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(channels))


def save_shufflenet(module: ShuffleNet, folder: Path) -> None:
    """Write `config.json` and `model.safetensors` into a folder, creating it if needed."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    config = {"model_type": ShuffleNetConfig.model_type, **dataclasses.asdict(module.config)}
    config["architectures"] = ["ShuffleNetForImageClassification"]
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    tensors = {name: tensor.contiguous() for name, tensor in module.state_dict().items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def read_shufflenet_config(file: Path) -> ShuffleNetConfig:
    """Read a `config.json` that `save_shufflenet` wrote.

    Raises:
      ModelError: if a key is missing, or not of whole numbers.
    """
    found = read_object(file)
    names = {field.name for field in dataclasses.fields(ShuffleNetConfig)}
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in found.items()
        if name in names
    }
    missing = sorted(names - values.keys())
    if missing:
        raise ModelError(f"{file}: lacks {', '.join(missing)} of a ShuffleNetV2; save it again")
    for name, value in values.items():
        parts = value if isinstance(value, tuple) else (value,)
        if not all(isinstance(e, bool) or (isinstance(e, int) and 1 <= e <= _MOST) for e in parts):
            raise ModelError(
                f"{file}: {name}: found {plain(repr(value), 80)}; whole numbers of 1 to {_MOST} "
                "are expected: save it again"
            )
    return ShuffleNetConfig(**values)


def load_shufflenet(folder: Path, config: ShuffleNetConfig) -> tuple[ShuffleNet, frozenset[str]]:
    """Build the network and load its weights; the head may have another number of classes.

    Returns:
      The network, and the in-memory names of the tensors that did not fit.

    Raises:
      ModelError: if the file is missing, or tensors outside the head are missing or misshapen.
    """
    from safetensors.torch import load_file

    file = folder / "model.safetensors"
    if not file.is_file():
        raise ModelError(f"{folder}: no model.safetensors; save the model with save_shufflenet")
    module = ShuffleNet(config)
    with reading(file, "the weights cannot be read"):
        found = load_file(file)
    expected = module.state_dict()
    bad = frozenset(n for n, t in expected.items() if n not in found or found[n].shape != t.shape)
    module.load_state_dict({n: found[n] for n in expected if n not in bad}, strict=False)
    return module, bad
