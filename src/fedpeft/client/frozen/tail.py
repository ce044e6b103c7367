"""The last block of a classifier, computed only for the token that its head reads.

    q_0 = W_q n_0,  k = W_k n,  v = W_v n        n: the block's input, normalised (ViT) or not
    y_0 = x_0 + W_o attention(q_0, k, v)
    out = y_0 + mlp(y_0)                         [B, 1, D] instead of [B, T, D]

The other outputs of that block are not read, so they are not computed: with six blocks this saves a
seventh of a step, with twelve a fifteenth. Training and evaluation use it if something trains in
the first block. Otherwise features of a frozen prefix may be stored, and an image's features are
equal to the bit in every batch only if all tokens are computed. Exported and loaded models never
use it.

Legend: B examples, T tokens, D width, H heads, W width of a head.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from fedpeft.models.pooling import pooling_of

_ATTENTION = ("eager", "sdpa")
"""Implementations of attention whose results `_attend` reproduces up to rounding."""


@dataclass(frozen=True)
class _Tail:
    """The computation of the first token in the last block of one kind of model.

    Attributes:
      blocks: path of the list of blocks in the model.
      kinds: path in the block ("" is the block) -> class of a module whose `forward` is bypassed;
        it must have neither hooks nor a replaced `forward`.
      make: returns the replacement of a block's `forward`.
    """

    blocks: str
    kinds: Mapping[str, str]
    make: Callable[[nn.Module], Callable[..., Tensor]]


def last_block(model: nn.Module) -> tuple[nn.Module, Callable[..., Tensor]] | None:
    """Return the last block and a replacement of its `forward`; None if it must not be replaced.

    It must not be replaced in models that are not in the table or that pool in another way than
    their class does, if nothing trains in the first block, or if the last block or its attention
    has hooks (prompts).
    """
    for module in model.modules():
        tail = _TAILS.get(f"{type(module).__module__}.{type(module).__qualname__}")
        if tail is None:
            continue
        implementation = getattr(module.config, "_attn_implementation", None)
        blocks = list(module.get_submodule(tail.blocks).children())
        block, known = blocks[-1], implementation in _ATTENTION
        pooled = pooling_of(module) is not None
        if pooled or not known or not _trains(blocks[0]) or not _is_plain(block, tail.kinds):
            return None
        return block, tail.make(block)
    return None


@contextlib.contextmanager
def short_tail(model: nn.Module) -> Iterator[None]:
    """Make the last block compute only its first token within the context, if it can."""
    found = last_block(model)
    if found is None:
        yield
        return
    block, run = found
    object.__setattr__(block, "forward", run)
    try:
        yield
    finally:
        object.__delattr__(block, "forward")


def _trains(block: nn.Module) -> bool:
    """Whether anything trains in a block: its parameters, or adapters hooked to its modules."""
    return any(parameter.requires_grad for parameter in block.parameters()) or any(
        part._forward_hooks or part._forward_pre_hooks for part in block.modules()
    )


def _is_plain(block: nn.Module, kinds: Mapping[str, str]) -> bool:
    for path, kind in kinds.items():
        part: Any = block.get_submodule(path) if path else block
        hooked = part._forward_hooks or part._forward_pre_hooks or "forward" in vars(part)
        if hooked or type(part).__qualname__ != kind or getattr(part, "is_decoder", False):
            return False
    return True


def _vit(module: nn.Module) -> Callable[..., Tensor]:
    block: Any = module
    attention = block.attention

    def run(x_BTD: Tensor, attention_mask: Tensor | None = None, **options: object) -> Tensor:
        if attention_mask is not None:
            return _stock(block, x_BTD, attention_mask, **options)
        normed_BTD = block.layernorm_before(x_BTD)
        seen_B1D = _attend(
            attention.q_proj(normed_BTD[:, :1]),
            attention.k_proj(normed_BTD),
            attention.v_proj(normed_BTD),
            None,
            width=attention.head_dim,
            scale=attention.scaling,
        )
        y_B1D: Tensor = x_BTD[:, :1] + attention.o_proj(seen_B1D)
        out_B1D: Tensor = y_B1D + block.mlp(block.layernorm_after(y_B1D))
        return out_B1D

    return run


def _bert(module: nn.Module) -> Callable[..., Tensor]:
    block: Any = module
    attention = block.attention.self

    def run(
        x_BTD: Tensor,
        attention_mask: Tensor | None = None,
        encoder_BTD: Tensor | None = None,
        past_key_values: object = None,
        **options: object,
    ) -> Tensor:
        if encoder_BTD is not None or past_key_values is not None:
            options["past_key_values"] = past_key_values
            return _stock(block, x_BTD, attention_mask, encoder_BTD, **options)
        seen_B1D = _attend(
            attention.query(x_BTD[:, :1]),
            attention.key(x_BTD),
            attention.value(x_BTD),
            attention_mask,
            width=attention.attention_head_size,
            scale=attention.scaling,
        )
        y_B1D = block.attention.output(seen_B1D, x_BTD[:, :1])
        out_B1D: Tensor = block.output(block.intermediate(y_B1D), y_B1D)
        return out_B1D

    return run


def _stock(block: nn.Module, *inputs: object, **options: object) -> Tensor:
    """Call the unmodified forward of the block's class."""
    found: Tensor = type(block).forward(block, *inputs, **options)
    return found


def _attend(
    query_B1D: Tensor,
    key_BTD: Tensor,
    value_BTD: Tensor,
    mask_B1TT: Tensor | None,
    *,
    width: int,
    scale: float,
) -> Tensor:
    """Return the attention of the first token to all tokens, heads concatenated, [B, 1, D]."""
    query_BH1W, key_BHTW, value_BHTW = (
        x.view(*x.shape[:2], -1, width).transpose(1, 2) for x in (query_B1D, key_BTD, value_BTD)
    )
    mask_B11T = None if mask_B1TT is None else mask_B1TT[:, :, :1]
    seen_BH1W = F.scaled_dot_product_attention(
        query_BH1W, key_BHTW, value_BHTW, attn_mask=mask_B11T, scale=scale
    )
    return seen_BH1W.transpose(1, 2).flatten(2)


_VIT = "transformers.models.vit.modeling_vit.ViTForImageClassification"
_BERT = "transformers.models.bert.modeling_bert.BertForSequenceClassification"

_TAILS: Mapping[str, _Tail] = {
    _VIT: _Tail("vit.layers", {"": "ViTLayer", "attention": "ViTAttention"}, _vit),
    _BERT: _Tail(
        "bert.encoder.layer",
        {"": "BertLayer", "attention": "BertAttention", "attention.self": "BertSelfAttention"},
        _bert,
    ),
}
"""Class of a model whose head reads its first token -> how its last block computes that token."""
