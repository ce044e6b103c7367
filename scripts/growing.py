"""A vision transformer for larger pictures that starts from one for smaller pictures.

    picture of 28 x 28, patches of 7 x 7        picture of 8 x 8, patches of 2 x 2
    4 x 4 patches                         ->    4 x 4 patches

A patch of the large picture is shrunk to one of the small picture by area, which is a linear map;
followed by the patch embedding of the small model it is a patch embedding for the large one. Class
token, positions and blocks are taken over, so the new model answers for a picture as the old one
does for the shrunk picture. The classifier starts from zeros.

Legend of shape suffixes: F features, p side of a small patch, P side of a large patch.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from transformers import ViTForImageClassification, ViTModel

__all__ = ["grow", "shrinking"]

_PATCHES = "embeddings.patch_embeddings.projection.weight"


def grow(model: ViTForImageClassification, folder: Path) -> None:
    """Give a model the weights of a smaller model of the same width, depth and number of patches.

    Args:
      model: changed in place.
      folder: of the smaller model.
    """
    small = ViTModel.from_pretrained(folder, add_pooling_layer=False).state_dict()
    area_pP = shrinking(small[_PATCHES].shape[-1], model.config.patch_size)
    small[_PATCHES] = torch.einsum("fcab,aA,bB->fcAB", small[_PATCHES], area_pP, area_pP)
    model.vit.load_state_dict(small)
    torch.nn.init.zeros_(model.classifier.weight)


def shrinking(small: int, large: int) -> Tensor:
    """Return how pixels are shrunk by area: float32 [small, large], each row with the sum 1."""
    fine = torch.eye(large).repeat_interleave(small, dim=1).view(large, small, large)
    return fine.mean(dim=2).T.contiguous()
