"""Packed rows: several examples one after the other, none of which attends to another.

    position_ids_BT   0 1 2 0 1 0            query i may attend to key j if j <= i, both are of
    mask_B1TT         0 - - - - -            one example, and key j is not padding: 0, else -
                      0 0 - - - -
                      0 0 0 - - -
                      - - - 0 - -
                      - - - 0 0 -
                      - - - - - 0   (padding attends to itself: a row of - only has no softmax)

An example begins where the positions begin again at 0. Legend: B rows, T tokens.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def apart(batch: Mapping[str, Tensor], dtype: torch.dtype) -> Mapping[str, Tensor]:
    """Return a batch in which packed examples cannot attend to each other; others do not change.

    Args:
      batch: packed if it has `position_ids`.
      dtype: type of the attention scores.
    """
    if "position_ids" not in batch:
        return batch
    mask = packed_mask(batch["position_ids"], batch["attention_mask"], dtype)
    return {**batch, "attention_mask": mask}


def packed_mask(position_BT: Tensor, mask_BT: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the additive mask [B, 1, T, T] of packed rows, queries by keys.

    Args:
      position_BT: place of each token within its example, from 0.
      mask_BT: 1 for a token, 0 for padding.
      dtype: type of the attention scores.
    """
    example_BT = (position_BT == 0).cumsum(1)
    same_BTT = example_BT[:, :, None] == example_BT[:, None, :]
    seen_BTT = same_BTT & mask_BT.bool()[:, None, :]
    eye_TT = torch.eye(position_BT.shape[1], dtype=torch.bool, device=position_BT.device)
    seen_BTT = (seen_BTT & torch.ones_like(eye_TT).tril()) | eye_TT
    zeros_B1TT = torch.zeros_like(seen_BTT, dtype=dtype)[:, None]
    return zeros_B1TT.masked_fill(~seen_BTT[:, None], torch.finfo(dtype).min)
