"""Self-supervised ViTs: from the names of the original implementations to those of `transformers`.

blocks.3.attn.qkv.weight [3D, D]  ->  layers.3.attention.{q,k,v}_proj.weight [D, D] each
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from torch import Tensor

from fedpeft.core.errors import ModelError
from fedpeft.models.raw_checkpoints import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Built,
    Sizes,
    Tensors,
    fill,
)


def build_vit(raw: Tensors, sizes: Sizes, where: str) -> Built:
    """Build a ViT backbone without a pooling layer.

    Args:
      raw: the backbone's tensors by their original names.
      sizes: the number of attention heads; the side of its pictures is fixed.
      where: the file and scheme, for messages.

    Raises:
      ModelError: if the tensors are not those of a plain ViT.
    """
    from transformers import ViTConfig, ViTModel

    if sizes.image_size is not None:
        raise ModelError(
            f"{where}: --size: found {sizes.image_size}; the side of a ViT's pictures belongs to "
            "its position embeddings: leave it out"
        )
    shape = _shape(raw, sizes.num_heads, where)
    module = fill(
        lambda: ViTModel(ViTConfig(**shape, layer_norm_eps=1e-6), add_pooling_layer=False),
        _renamed(raw),
        where,
        "a plain ViT",
    )
    return Built(
        module,
        shape,
        _processor(shape),
        kind="ViT backbone",
        pipeline_tag="image-feature-extraction",
        head="no head",
        images="bicubic resize; mean and deviation of ImageNet for three channels",
    )


def _shape(raw: Tensors, num_heads: int | None, where: str) -> dict[str, int]:
    """Infer the architecture from the shapes of three tensors and the number of blocks."""
    try:
        width, channels, patch, _ = raw["patch_embed.proj.weight"].shape
        mlp = raw["blocks.0.mlp.fc1.weight"].shape[0]
        positions = raw["pos_embed"].shape[1] - 1
    except (KeyError, ValueError, IndexError) as error:
        raise ModelError(
            f"{where}: not a ViT: {error} is missing or misshapen; "
            f"the first names are {', '.join(list(raw)[:3]) or '(none)'}"
        ) from error
    side = math.isqrt(positions)
    heads = num_heads if num_heads is not None else max(1, width // 64)
    if side * side != positions or width % heads:
        raise ModelError(
            f"{where}: {positions} patches do not form a square, or {heads} heads do not divide "
            f"the width {width}; give the number of heads"
        )
    blocks = {int(found.group(1)) for name in raw if (found := re.match(r"blocks\.(\d+)\.", name))}
    return {
        "hidden_size": width,
        "num_hidden_layers": 1 + max(blocks),
        "num_attention_heads": heads,
        "intermediate_size": mlp,
        "image_size": side * patch,
        "patch_size": patch,
        "num_channels": channels,
    }


def _renamed(raw: Tensors) -> dict[str, Tensor]:
    """Rename the tensors as in `ViTModel`, and split the fused query, key and value."""
    renamed: dict[str, Tensor] = {}
    for name, tensor in raw.items():
        for pattern, replacement in _RULES:
            name = re.sub(pattern, replacement, name)
        if ".qkv." in name:
            for letter, part in zip("qkv", tensor.chunk(3), strict=True):
                renamed[name.replace(".qkv.", f".{letter}_proj.")] = part.contiguous()
        else:
            renamed[name] = tensor
    return renamed


def _processor(shape: Mapping[str, int]) -> dict[str, object]:
    """Return the settings of `ViTImageProcessor`; all schemes use the statistics of ImageNet."""
    channels = shape["num_channels"]
    return {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": shape["image_size"], "width": shape["image_size"]},
        "resample": 3,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(IMAGENET_MEAN) if channels == 3 else [0.5] * channels,
        "image_std": list(IMAGENET_STD) if channels == 3 else [0.5] * channels,
    }


_RULES = (
    (r"^cls_token$", "embeddings.cls_token"),
    (r"^pos_embed$", "embeddings.position_embeddings"),
    (r"^patch_embed\.proj\.", "embeddings.patch_embeddings.projection."),
    (r"^norm\.", "layernorm."),
    (r"^blocks\.(\d+)\.norm1\.", r"layers.\1.layernorm_before."),
    (r"^blocks\.(\d+)\.norm2\.", r"layers.\1.layernorm_after."),
    (r"^blocks\.(\d+)\.attn\.proj\.", r"layers.\1.attention.o_proj."),
    (r"^blocks\.(\d+)\.attn\.qkv\.", r"layers.\1.attention.qkv."),
    (r"^blocks\.(\d+)\.mlp\.", r"layers.\1.mlp."),
)
