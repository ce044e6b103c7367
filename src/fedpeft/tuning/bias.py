"""Bias tuning: every parameter whose name contains "bias" trains, and the head.

    y = W x + b        W frozen, b trained

On a ViT these are the biases of patch embedding, layer norms, attention and MLP (also that of the
keys, although the softmax cancels it). Some models have no bias at all (Llama); `add_missing`
gives each linear layer of their blocks a zero bias, which does not change the model's output.

Reference: Ben Zaken et al., BitFit, ACL 2022.
"""

from __future__ import annotations

import torch
from torch import nn

from fedpeft.core.errors import TuningError
from fedpeft.models.families import block_of, canonical
from fedpeft.models.loaded import LoadedModel
from fedpeft.tuning.prepared import ModelToTune, PreparedModel, head_parameters, in_range


def bias(model: ModelToTune) -> PreparedModel:
    """Train all biases, or those of a range of blocks, and the head.

    Raises:
      TuningError: if the backbone has no bias and `add_missing` is not set.
    """
    loaded = model.loaded
    if model.options["add_missing"]:
        _add_missing(loaded)
    head = head_parameters(loaded)
    names = [name for name, _ in loaded.module.named_parameters() if name not in head]
    biases = {name for name in names if "bias" in name and in_range(model, name)}
    if not biases:
        raise TuningError(
            f"tuning.method bias: {loaded.source} has no bias outside its head; set "
            "`add_missing = true` in [tuning.options] to add zero biases to the linear layers of "
            "its blocks, or choose another method (lora, adapter)"
        )
    return PreparedModel(loaded.module, biases | head)


def _add_missing(loaded: LoadedModel) -> None:
    """Add a zero bias to each linear layer of the blocks, or of a plain module's backbone."""
    for path, part in loaded.module.named_modules():
        if isinstance(part, nn.Linear) and part.bias is None and _is_body(loaded, path):
            weight = part.weight
            zeros = torch.zeros(part.out_features, device=weight.device, dtype=weight.dtype)
            part.bias = nn.Parameter(zeros)
    config = getattr(loaded.module, "config", None)
    for flag in ("attention_bias", "mlp_bias", "qkv_bias"):
        if hasattr(config, flag):
            setattr(config, flag, True)


def _is_body(loaded: LoadedModel, path: str) -> bool:
    if loaded.family.block:
        return block_of(canonical(loaded.family, f"{path}.")) is not None
    return not f"{path}.".startswith(tuple(f"{head}." for head in loaded.head))
