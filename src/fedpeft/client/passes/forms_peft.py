"""LoRA, DoRA and IA3 with a client axis, in the places of `peft`'s own layers.

    lora   y = W x + b + s B_k A_k x          W x + b once for all, then two batched products
    dora   y = m_k / |W + s B_k A_k| (W + s B_k A_k) x + b       the norm row by row, as a constant
    ia3    y = l_k * (W x + b), or W (l_k * x) + b

Legend: G clients of a pass, N numbers a client in the middle (examples times tokens), I in, O out,
R rank, D width.

References: Hu et al. 2022 (LoRA), Liu et al. 2024 (DoRA), Liu et al. 2022 (IA3).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from fedpeft.client.passes.forms import Own, Run, apart

__all__ = ["Ia3Layer", "LoraLayer", "ia3", "is_plain_lora", "lora"]


class LoraLayer(Protocol):
    """The part of `peft`'s linear LoRA layer that we use."""

    active_adapters: Sequence[str]
    merged: bool
    disable_adapters: bool
    base_layer: nn.Linear
    lora_A: Mapping[str, nn.Linear]
    lora_B: Mapping[str, nn.Linear]
    lora_dropout: Mapping[str, nn.Module]
    lora_variant: Mapping[str, object]
    scaling: Mapping[str, float]
    fan_in_fan_out: bool


class Ia3Layer(Protocol):
    """The part of `peft`'s linear IA3 layer that we use."""

    active_adapters: Sequence[str]
    base_layer: nn.Module
    is_feedforward: bool


def is_plain_lora(module: LoraLayer) -> bool:
    """Whether a layer is LoRA or DoRA without what would need a form of its own."""
    names = list(module.active_adapters)
    if len(names) != 1 or module.merged or module.disable_adapters:
        return False
    variant = type(module.lora_variant.get(names[0])).__name__
    bias = module.base_layer.bias
    if variant == "DoraLinearVariant":  # it takes the bias out again
        return bias is None or not bias.requires_grad
    return variant == "NoneType" and module.lora_B[names[0]].bias is None


def lora(module: LoraLayer, own: Own) -> Run:
    """Return what takes the place of a LoRA or DoRA layer's `forward`."""
    (name,) = module.active_adapters
    scaling = float(module.scaling[name])
    magnitude = f"lora_magnitude_vector.{name}.weight"
    frozen = {"lora_A": module.lora_A[name].weight, "lora_B": module.lora_B[name].weight}

    def factors() -> tuple[Tensor, Tensor]:
        found = [own[p] if (p := f"{key}.{name}.weight") in own else frozen[key] for key in frozen]
        clients = max(len(f) for f in found if f.dim() == 3)
        a_GRI, b_GOR = (f if f.dim() == 3 else f.expand(clients, -1, -1) for f in found)
        return a_GRI, b_GOR

    def plain(x: Tensor, *args: object, **options: object) -> Tensor:
        a_GRI, b_GOR = factors()
        base = module.base_layer(x, *args, **options)
        low_GNR = torch.bmm(apart(module.lora_dropout[name](x), len(a_GRI)), a_GRI.mT)
        base_GNO = apart(base, len(a_GRI))
        return torch.baddbmm(base_GNO, low_GNR, b_GOR.mT, alpha=scaling).view(base.shape)

    def decomposed(x: Tensor, *args: object, **options: object) -> Tensor:
        a_GRI, b_GOR = factors()
        base = module.base_layer(x, *args, **options)
        bias = module.base_layer.bias
        base_GNO = apart(base if bias is None else base - bias, len(a_GRI))
        with torch.no_grad():
            norm_GO = _row_norms(module, a_GRI, b_GOR, scaling)
        low_GNR = torch.bmm(apart(x, len(a_GRI)), a_GRI.mT)
        high_GNO = torch.baddbmm(base_GNO, low_GNR, b_GOR.mT, alpha=scaling)
        y_GNO = (own[magnitude] / norm_GO).unsqueeze(1) * high_GNO
        return (y_GNO if bias is None else y_GNO + bias).view(base.shape)

    return decomposed if magnitude in own else plain


def ia3(module: Ia3Layer, own: Own) -> Run:
    """Return what takes the place of an IA3 layer's `forward`."""
    (name,) = module.active_adapters

    def run(x: Tensor, *args: object, **options: object) -> Tensor:
        scale_G1D = own[f"ia3_l.{name}"].flatten(1).unsqueeze(1)
        clients = len(scale_G1D)
        if module.is_feedforward:
            scaled = (apart(x, clients) * scale_G1D).view(x.shape)
            return cast(Tensor, module.base_layer(scaled, *args, **options))
        y: Tensor = module.base_layer(x, *args, **options)
        return (apart(y, clients) * scale_G1D).view(y.shape)

    return run


def _row_norms(module: LoraLayer, a_GRI: Tensor, b_GOR: Tensor, scaling: float) -> Tensor:
    """Norms [G, O] of the rows of W + s B A, without making that matrix for every client."""
    weight_OI = module.base_layer.weight
    weight_OI = weight_OI.T if module.fan_in_fan_out else weight_OI
    crossed_GO = (torch.matmul(weight_OI, a_GRI.mT) * b_GOR).sum(-1)
    added_GO = (torch.bmm(b_GOR, torch.bmm(a_GRI, a_GRI.mT)) * b_GOR).sum(-1)
    squares_GO = weight_OI.pow(2).sum(1) + 2 * scaling * crossed_GO + scaling**2 * added_GO
    return squares_GO.clamp(min=0).sqrt()
