"""MobileNetV2 of torchvision: from its names to those of `transformers`.

    features.0.{0,1}                  ->  conv_stem.first_conv.{convolution,normalization}
    features.1.conv.{0.0,0.1,1,2}     ->  conv_stem.{conv_3x3,reduce_1x1}.{...}
    features.N.conv.{0.*,1.*,2,3}     ->  layer.N-2.{expand_1x1,conv_3x3,reduce_1x1}.{...}
    features.18.{0,1}                 ->  conv_1x1.{convolution,normalization}
    classifier.1                      ->  classifier

torchvision pads evenly and has 1e-5 in its BatchNorm, where TensorFlow's weights, for which the
class of `transformers` was written, pad behind and have 1e-3.

Reference: Sandler et al., MobileNetV2: Inverted Residuals and Linear Bottlenecks, CVPR 2018.
"""

from __future__ import annotations

import re

from fedpeft.core.errors import ModelError
from fedpeft.models.raw_checkpoints import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Built,
    Sizes,
    Tensors,
    fill,
)

_SIZE = 224
_SMALLEST, _LARGEST = 32, 4096
_RESIZED = 256 / 224
"""Shorter side before the crop, as a part of the crop's: torchvision's 256 for 224."""
_WIDTH = 320
"""Channels of the last block at a width multiplier of 1; widths are multiples of 8."""


def build_mobilenet_v2(raw: Tensors, sizes: Sizes, where: str) -> Built:
    """Build a MobileNetV2 with its classifier, of any width multiplier and number of classes.

    Args:
      raw: the tensors by torchvision's names.
      sizes: the side of its pictures in pixels; None is 224.
      where: the file and scheme, for messages.

    Raises:
      ModelError: if the tensors are not those of torchvision's MobileNetV2, if it is so narrow that
        its first block has a skip addition, or the side is not within 32 to 4,096.
    """
    from transformers import MobileNetV2Config, MobileNetV2ForImageClassification

    size = _SIZE if sizes.image_size is None else sizes.image_size
    if not _SMALLEST <= size <= _LARGEST:
        raise ModelError(
            f"{where}: --size: found {size}; allowed are {_SMALLEST} to {_LARGEST:,} pixels"
        )
    width, channels, classes = _shape(raw, where)
    config = MobileNetV2Config(
        num_channels=channels,
        image_size=size,
        depth_multiplier=width,
        tf_padding=False,
        layer_norm_eps=1e-5,
        classifier_dropout_prob=0.2,
        num_labels=classes,
    )
    module = fill(
        lambda: MobileNetV2ForImageClassification(config), _renamed(raw), where, "a MobileNetV2"
    )
    resized = round(size * _RESIZED)
    processor = {
        "image_processor_type": "MobileNetV2ImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": resized},
        "resample": 2,
        "do_center_crop": True,
        "crop_size": {"height": size, "width": size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(IMAGENET_MEAN) if channels == 3 else [0.5] * channels,
        "image_std": list(IMAGENET_STD) if channels == 3 else [0.5] * channels,
    }
    return Built(
        module,
        {"depth_multiplier": width, "num_channels": channels, "image_size": size},
        processor,
        kind="MobileNetV2",
        pipeline_tag="image-classification",
        head=f"a head of {classes:,} classes, which the file does not name",
        images=(
            f"shorter side resized to {resized} (bilinear), centre of {size} x {size}; mean and "
            "deviation of ImageNet for three channels"
        ),
    )


def _shape(raw: Tensors, where: str) -> tuple[float, int, int]:
    """Return width multiplier, channels of a picture and number of classes."""
    try:
        width = raw["features.17.conv.2.weight"].shape[0] / _WIDTH
        block = [raw[name].shape[0] for name in ("features.0.0.weight", "features.1.conv.1.weight")]
        channels = raw["features.0.0.weight"].shape[1]
        classes = raw["classifier.1.weight"].shape[0]
    except (KeyError, IndexError) as error:
        raise ModelError(
            f"{where}: not a MobileNetV2 of torchvision: {error} is missing or misshapen; "
            f"the first names are {', '.join(list(raw)[:3]) or '(none)'}"
        ) from error
    if not (0 < width <= _WIDEST and channels and classes):
        raise ModelError(
            f"{where}: not a MobileNetV2 of torchvision: {width:g} times its width, {channels} "
            f"channels and {classes} classes"
        )
    if block[0] == block[1]:
        raise ModelError(
            f"{where}: its first block has {block[0]} channels before and after, and torchvision "
            "adds the one to the other where the class of transformers does not: convert a model "
            "of a width of 0.35 or more"
        )
    return width, channels, classes


def _renamed(raw: Tensors) -> Tensors:
    return {_new_name(name): tensor for name, tensor in raw.items()}


def _new_name(name: str) -> str:
    """Return the name in `transformers`; one of no known place is kept."""
    for pattern, replacement in _RULES:
        found = re.sub(pattern, replacement, name)
        if found != name:
            name = found
            break
    return re.sub(r"(?<=^mobilenet_v2\.layer\.)\d+", lambda n: str(int(n[0]) - 2), name)


_WIDEST = 8
_FIRST = "mobilenet_v2.conv_stem"
_LAYER = r"mobilenet_v2.layer.\1"
_RULES = (
    (r"^features\.0\.0\.", f"{_FIRST}.first_conv.convolution."),
    (r"^features\.0\.1\.", f"{_FIRST}.first_conv.normalization."),
    (r"^features\.1\.conv\.0\.0\.", f"{_FIRST}.conv_3x3.convolution."),
    (r"^features\.1\.conv\.0\.1\.", f"{_FIRST}.conv_3x3.normalization."),
    (r"^features\.1\.conv\.1\.", f"{_FIRST}.reduce_1x1.convolution."),
    (r"^features\.1\.conv\.2\.", f"{_FIRST}.reduce_1x1.normalization."),
    (r"^features\.18\.0\.", "mobilenet_v2.conv_1x1.convolution."),
    (r"^features\.18\.1\.", "mobilenet_v2.conv_1x1.normalization."),
    (r"^features\.(\d+)\.conv\.0\.0\.", rf"{_LAYER}.expand_1x1.convolution."),
    (r"^features\.(\d+)\.conv\.0\.1\.", rf"{_LAYER}.expand_1x1.normalization."),
    (r"^features\.(\d+)\.conv\.1\.0\.", rf"{_LAYER}.conv_3x3.convolution."),
    (r"^features\.(\d+)\.conv\.1\.1\.", rf"{_LAYER}.conv_3x3.normalization."),
    (r"^features\.(\d+)\.conv\.2\.", rf"{_LAYER}.reduce_1x1.convolution."),
    (r"^features\.(\d+)\.conv\.3\.", rf"{_LAYER}.reduce_1x1.normalization."),
    (r"^classifier\.1\.", "classifier."),
)
