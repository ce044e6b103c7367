"""Weights in 8 and 4 bits, by bitsandbytes: packed once, unpacked whenever a layer runs.

Legend: O outputs, I inputs.

References:
  Dettmers et al., LLM.int8(): 8-bit Matrix Multiplication for Transformers at Scale, NeurIPS 2022.
  Dettmers et al., QLoRA: Efficient Finetuning of Quantized LLMs (NF4), NeurIPS 2023.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor

from fedpeft.core.optional import bitsandbytes

_BLOCK = 64


@dataclass(frozen=True)
class Packing:
    """A way to quantise a weight.

    Attributes:
      pack: weight [O, I], float32 -> its codes and their scales.
      unpack: (codes, scales, shape, type) -> the weight [O, I].
    """

    pack: Callable[[Tensor], tuple[Tensor, Tensor]]
    unpack: Callable[..., Tensor]


def _pack_int8(weight_OI: Tensor) -> tuple[Tensor, Tensor]:
    if weight_OI.is_meta:
        return weight_OI.to(torch.int8), weight_OI[:, 0]
    codes, scales, _ = _functional("int8").int8_vectorwise_quant(weight_OI)
    return codes, scales


def _unpack_int8(
    codes: Tensor, scales: Tensor, *, shape: tuple[int, int], dtype: torch.dtype
) -> Tensor:
    found: Tensor = _functional("int8").int8_vectorwise_dequant(codes, scales)
    return found.to(dtype)


def _pack_nf4(weight_OI: Tensor) -> tuple[Tensor, Tensor]:
    blocks = -(-weight_OI.numel() // _BLOCK)
    if weight_OI.is_meta:
        codes = weight_OI.new_empty((blocks * _BLOCK // 2, 1), dtype=torch.uint8)
        return codes, weight_OI.new_empty((blocks,))
    padded = F.pad(weight_OI.flatten(), (0, blocks * _BLOCK - weight_OI.numel()))
    codes, state = _functional("nf4").quantize_4bit(
        padded.view(blocks, _BLOCK), blocksize=_BLOCK, quant_type="nf4"
    )
    return codes, state.absmax


def _unpack_nf4(
    codes: Tensor, scales: Tensor, *, shape: tuple[int, int], dtype: torch.dtype
) -> Tensor:
    """Widen codes, a block to a row: the CPU kernel of bitsandbytes misreads other widths."""
    functional = _functional("nf4")
    state = functional.QuantState(
        absmax=scales,
        shape=torch.Size((len(scales), _BLOCK)),
        code=functional.get_4bit_type("nf4", device=codes.device),
        blocksize=_BLOCK,
        quant_type="nf4",
        dtype=dtype,
    )
    found: Tensor = functional.dequantize_4bit(codes, state)
    return found.flatten()[: math.prod(shape)].view(shape)


PACKINGS: Mapping[str, Packing] = {
    "int8": Packing(_pack_int8, _unpack_int8),
    "nf4": Packing(_pack_nf4, _unpack_nf4),
}


def _functional(name: str) -> ModuleType:
    found: ModuleType = bitsandbytes(f"model.quantization = {name!r}").functional
    return found
