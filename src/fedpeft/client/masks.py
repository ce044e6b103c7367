"""Attention masks that `torch.func.vmap` can batch: additive masks with four axes.

    mask_BT       1 1 1 0       query i may attend to key j if key j is not padding,
    mask_B1TT     0 0 0 -       and, in a decoder, if j <= i:  0 if allowed, - if not

`transformers` reads the values of a two-dimensional mask to choose a kernel, which a batched
function cannot do; a mask with four axes is added to the scores as it is. Legend: B examples,
T tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fedpeft.models.tasks import Batch
from fedpeft.tuning.tuned import TunedModel

_ENCODERS = ("bert", "distilbert", "roberta")
_DECODERS = ("gpt2", "llama", "qwen2", "qwen3")
"""Families without sliding windows: all layers attend to every key that the mask allows."""

_OWN_MASKS = ("cartridge", "p_tuning", "prefix_tuning", "prompt_tuning")
"""Methods that prepend tokens to the text and extend the two-dimensional mask themselves."""


def can_batch_text(tuned: TunedModel) -> bool:
    """Whether a text model's examples can be batched in one `vmap`, each with its own mask."""
    config = getattr(tuned.loaded.module, "config", None)
    windows = getattr(config, "sliding_window", None) is not None
    known = tuned.loaded.family.name in _ENCODERS + _DECODERS
    return known and not windows and tuned.method not in _OWN_MASKS


def with_spread_mask(tuned: TunedModel, batch: Batch) -> Batch:
    """Replace a batch's `attention_mask` [B, T] by [B, 1, T, T]; other batches do not change.

    Packed examples get theirs from the task.
    """
    mask = batch.get("attention_mask")
    if mask is None or mask.ndim != 2 or "position_ids" in batch:
        return batch
    causal = tuned.loaded.family.name in _DECODERS
    return {**batch, "attention_mask": spread_mask(mask, tuned.spec.dtype, causal=causal)}


def spread_mask(mask_BT: Tensor, dtype: torch.dtype, *, causal: bool) -> Tensor:
    """Make an additive mask [B, 1, T, T], queries by keys: 0 or the lowest number of the type.

    Args:
      mask_BT: 1 for a token, 0 for padding.
      dtype: type of the attention scores.
      causal: whether a token attends only to itself and earlier tokens.
    """
    size = mask_BT.shape[1]
    seen_B1TT = mask_BT.bool()[:, None, None, :].expand(-1, 1, size, size)
    if causal:
        seen_B1TT = seen_B1TT & torch.ones_like(seen_B1TT[:1]).tril()
    zeros_B1TT = torch.zeros(seen_B1TT.shape, dtype=dtype, device=mask_BT.device)
    return zeros_B1TT.masked_fill(~seen_B1TT, torch.finfo(dtype).min)
