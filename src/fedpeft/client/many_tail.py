"""The last block of an image transformer, for the one token that the head reads.

    q_cls = W_q n_cls,  k = W_k n,  v = W_v n                 n = norm1(x), all tokens
    y_cls = x_cls + W_o attention(q_cls, k, v)
    out   = y_cls + mlp(norm2(y_cls))                         [B, 1, D] instead of [B, T, D]

No other output of that block is read, so none is computed: of four blocks that saves a fifth of a
step. Only in a pass of several clients, whose results are equal within rounding anyway. Legend: B
examples, T tokens, D width, H heads, W width of a head.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, cast

import torch.nn.functional as F
from torch import Tensor, nn

from fedpeft.tuning.tuned import TunedModel

__all__ = ["last_block"]

_MODEL = "transformers.models.vit.modeling_vit.ViTForImageClassification"


class _Attention(Protocol):
    """The part of `transformers`' ViT attention that we use."""

    head_dim: int
    scaling: float
    q_proj: Callable[[Tensor], Tensor]
    k_proj: Callable[[Tensor], Tensor]
    v_proj: Callable[[Tensor], Tensor]
    o_proj: Callable[[Tensor], Tensor]


class _Block(Protocol):
    """The part of `transformers`' ViT block that we use."""

    attention: _Attention
    layernorm_before: Callable[[Tensor], Tensor]
    layernorm_after: Callable[[Tensor], Tensor]
    mlp: Callable[[Tensor], Tensor]


def last_block(tuned: TunedModel) -> tuple[nn.Module, Callable[..., object]] | None:
    """Return the last block and what takes the place of its `forward`; None where it must stay.

    It stays where anything is hooked to the block or to its attention (prompts, adapters after the
    attention), and in all other models.
    """
    model = tuned.loaded.module
    kind = f"{type(model).__module__}.{type(model).__qualname__}"
    if kind != _MODEL:
        return None
    block = cast(nn.ModuleList, model.get_submodule("vit.layers"))[-1]
    hooked = [block, block.get_submodule("attention")]
    if any(part._forward_hooks or part._forward_pre_hooks for part in hooked):
        return None
    return block, _for_first_token(block)


def _for_first_token(module: nn.Module) -> Callable[..., object]:
    block = cast(_Block, module)
    attention = block.attention

    def heads(x_BTD: Tensor) -> Tensor:
        return x_BTD.view(*x_BTD.shape[:2], -1, attention.head_dim).transpose(1, 2)

    def run(x_BTD: Tensor, attention_mask: Tensor | None = None, **options: object) -> object:
        if attention_mask is not None:
            return type(module).forward(module, x_BTD, attention_mask, **options)
        first_B1D = x_BTD[:, :1]
        normed_BTD = block.layernorm_before(x_BTD)
        query_BH1W = heads(attention.q_proj(normed_BTD[:, :1]))
        key_BHTW, value_BHTW = (
            heads(attention.k_proj(normed_BTD)),
            heads(attention.v_proj(normed_BTD)),
        )
        seen_BH1W = F.scaled_dot_product_attention(
            query_BH1W, key_BHTW, value_BHTW, scale=attention.scaling
        )
        y_B1D = first_B1D + attention.o_proj(seen_BH1W.transpose(1, 2).flatten(2))
        return y_B1D + block.mlp(block.layernorm_after(y_B1D))

    return run
