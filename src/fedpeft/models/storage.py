"""How the frozen weights of a model are stored: in float32, half precision, 8 or 4 bits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from fedpeft.core.errors import ModelError

DTYPES = ("auto", "float32", "bfloat16")
QUANTIZATIONS = ("none", "int8", "nf4")
_HALF: Mapping[str, torch.dtype] = {"BF16": torch.bfloat16, "F16": torch.float16}


@dataclass(frozen=True)
class Storage:
    """How the frozen weights of a model are stored.

    Attributes:
      dtype: float32, bfloat16 or float16, of linear layers and embeddings.
      quantization: `none`, `int8` or `nf4`, of linear layers outside the head.
    """

    dtype: torch.dtype = torch.float32
    quantization: str = "none"

    @property
    def plain(self) -> bool:
        """Whether everything is float32."""
        return self.dtype is torch.float32 and self.quantization == "none"


FLOAT32 = Storage()


def storage_of(dtype: str, quantization: str, kinds: Mapping[str, int]) -> Storage:
    """Return the storage that a request names.

    Args:
      dtype: one of `DTYPES`; `auto` is the type that most weights have in the files.
      quantization: one of `QUANTIZATIONS`.
      kinds: types in the files, as safetensors writes them, with numbers of elements; {} where
        there are no files.

    Raises:
      ModelError: for another name.
    """
    for key, found, allowed in (
        ("dtype", dtype, DTYPES),
        ("quantization", quantization, QUANTIZATIONS),
    ):
        if found not in allowed:
            raise ModelError(f"model.{key}: found {found!r}, allowed are {', '.join(allowed)}")
    most = max(kinds, key=lambda kind: kinds[kind], default="F32")
    chosen = _HALF.get(most, torch.float32) if dtype == "auto" else getattr(torch, dtype)
    return Storage(chosen, quantization)
