"""Layers with a client axis: what the trained layers of a model compute while K clients train.

    frozen layer     [K*B, T, I] ──W──> [K*B, T, O]                 as ever: one long batch
    trained layer    [K, B*T, I] ──W_k, b_k──> [K, B*T, O]          one batched product

A form takes the place of a module's `forward` (or of one method) while a pass runs; all other
modules stay as they are, because they treat the rows of a batch apart. A form reads the values of
the clients in the pass from `Live`. Legend: G clients of a pass, N numbers a client in the middle
(examples times tokens), I in, O out, R rank, D width, P prompt tokens.

References: Hu et al. 2022 (LoRA), Liu et al. 2024 (DoRA), Liu et al. 2022 (IA3), Jia et al. 2022
(prompts).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedpeft.tuning.prompt import Prompt
from fedpeft.tuning.tuned import TunedModel

__all__ = ["Live", "Place", "find_places", "in_place"]


@dataclass
class Live:
    """The values that the model computes with now.

    Attributes:
      values: wire name -> [G, *shape], one row a client of the pass.
    """

    values: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Own:
    """The trained parameters of one module by the module's own names: [G, *shape] each."""

    wire: Mapping[str, str]
    live: Live

    def __contains__(self, name: str) -> bool:
        return name in self.wire

    def __getitem__(self, name: str) -> Tensor:
        return self.live.values[self.wire[name]]


Run = Callable[..., object]


class _Conv1D(Protocol):
    """GPT-2's linear layer: its weight is [I, O]."""

    weight: Tensor


class _RmsNorm(Protocol):
    """A norm of `transformers` without a mean."""

    variance_epsilon: float


class _Lora(Protocol):
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


class _Ia3(Protocol):
    """The part of `peft`'s linear IA3 layer that we use."""

    active_adapters: Sequence[str]
    base_layer: nn.Module
    is_feedforward: bool


@dataclass(frozen=True)
class Form:
    """How one class of modules computes for several clients.

    Attributes:
      make: from a module and its trained parameters to what replaces its method.
      trains: own names that may be trained; () for any.
      method: what is replaced.
      whole: whether it speaks for the modules inside it too, but for a `base_layer`.
    """

    make: Callable[[Any, Own], Run]
    trains: tuple[str, ...] = ()
    method: str = "forward"
    whole: bool = False


@dataclass(frozen=True)
class Place:
    """A module whose method gives way to a form while a pass runs."""

    module: nn.Module
    method: str
    run: Run


def find_places(tuned: TunedModel, live: Live) -> list[Place] | str:
    """Find a form for every trained parameter, or say which has none."""
    wire = {id(parameter): name for name, parameter in tuned.parameters.items()}
    inside: set[int] = set()
    covered: set[str] = set()
    found: list[Place] = []
    for path, module in tuned.model.named_modules():
        if id(module) in inside:
            continue
        form = _form_of(module)
        own = _trained(module, wire, whole=form is not None and form.whole)
        if not own:
            continue
        if form is None or (form.trains and not set(own) <= set(form.trains)):
            return f"{path or 'the model itself'} ({type(module).__name__}) trains {sorted(own)}"
        if form.whole:
            inside |= {id(part) for name, part in module.named_modules() if not _is_base(name)}
        found.append(Place(module, form.method, form.make(module, Own(own, live))))
        covered |= set(own.values())
    missing = [name for name in tuned.parameters if name not in covered]
    return f"{missing[0]} is not in the model's modules" if missing else found


@contextlib.contextmanager
def in_place(places: Sequence[Place]) -> Iterator[None]:
    """Let the forms take the place of their modules' methods inside the block."""
    for place in places:
        object.__setattr__(place.module, place.method, place.run)
    try:
        yield
    finally:
        for place in places:
            object.__delattr__(place.module, place.method)


def _form_of(module: nn.Module) -> Form | None:
    kind = type(module)
    form = _FORMS.get(f"{kind.__module__}.{kind.__qualname__}")
    return None if form is _LORA and not _is_plain_lora(cast(_Lora, module)) else form


def _trained(module: nn.Module, wire: Mapping[int, str], *, whole: bool) -> dict[str, str]:
    """Own name -> wire name of a module's trained parameters."""
    pairs = module.named_parameters(recurse=whole, remove_duplicate=False)
    return {name: wire[id(p)] for name, p in pairs if id(p) in wire and not _is_base(name)}


def _is_base(name: str) -> bool:
    return name == "base_layer" or name.startswith("base_layer.")


def _apart(x: Tensor, clients: int) -> Tensor:
    """Return [G, N, D] of [G * B, ..., D]."""
    return x.reshape(clients, -1, x.shape[-1])


def _linear(module: nn.Linear, own: Own) -> Run:
    return _matrix(module, own) if "weight" in own else _added_bias(module, own)


def _matrix(module: nn.Linear, own: Own) -> Run:
    """Weights of the clients' own: y = x W_k^T + b_k."""

    def run(x: Tensor) -> Tensor:
        weight_GOI = own["weight"]
        x_GNI = _apart(x, len(weight_GOI))
        if "bias" in own:
            y_GNO = torch.baddbmm(own["bias"].unsqueeze(1), x_GNI, weight_GOI.mT)
        elif module.bias is not None:
            y_GNO = torch.baddbmm(module.bias, x_GNI, weight_GOI.mT)
        else:
            y_GNO = torch.bmm(x_GNI, weight_GOI.mT)
        return y_GNO.view(*x.shape[:-1], -1)

    return run


def _added_bias(module: nn.Linear, own: Own) -> Run:
    """One product for all with the frozen weight, then the clients' own biases."""

    def run(x: Tensor) -> Tensor:
        bias_GO = own["bias"]
        y_GNO = F.linear(_apart(x, len(bias_GO)), module.weight)
        return y_GNO.add_(bias_GO.unsqueeze(1)).view(*x.shape[:-1], -1)

    return run


def _added_bias_1d(module: _Conv1D, own: Own) -> Run:
    """The same for GPT-2's layers."""

    def run(x: Tensor) -> Tensor:
        bias_GO = own["bias"]
        y_GNO = torch.matmul(_apart(x, len(bias_GO)), module.weight)
        return y_GNO.add_(bias_GO.unsqueeze(1)).view(*x.shape[:-1], -1)

    return run


def _convolution(module: nn.Conv2d | nn.Conv3d, own: Own) -> Run:
    """One convolution for all with the frozen kernel, then the clients' own biases."""

    def run(x: Tensor) -> Tensor:
        bias_GO = own["bias"]
        y: Tensor = module._conv_forward(x, module.weight, None)
        ones = (1,) * (y.dim() - 2)
        apart = y.view(len(bias_GO), -1, *y.shape[1:]) + bias_GO.view(len(bias_GO), 1, -1, *ones)
        return apart.flatten(0, 1)

    return run


def _layer_norm(module: nn.LayerNorm, own: Own) -> Run:
    """Gains and biases of the clients' own, where they train."""

    def run(x: Tensor) -> Tensor:
        if "weight" not in own:
            y = F.layer_norm(x, module.normalized_shape, module.weight, None, module.eps)
            bias_GD = own["bias"]
            return _apart(y, len(bias_GD)).add_(bias_GD.unsqueeze(1)).view(x.shape)
        y = F.layer_norm(x, module.normalized_shape, None, None, module.eps)
        gain_G1D = own["weight"].unsqueeze(1)
        y_GND = _apart(y, len(gain_G1D))
        bias = own["bias"].unsqueeze(1) if "bias" in own else module.bias
        if bias is None:
            return (y_GND * gain_G1D).view(x.shape)
        return torch.addcmul(bias, y_GND, gain_G1D).view(x.shape)

    return run


def _rms_norm(module: _RmsNorm, own: Own) -> Run:
    """Gains of the clients' own over a root mean square."""

    def run(x: Tensor) -> Tensor:
        wide = x.to(torch.float32)
        scale = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + module.variance_epsilon)
        gain_GD = own["weight"]
        y_GND = _apart((wide * scale).to(x.dtype), len(gain_GD))
        return (gain_GD.unsqueeze(1) * y_GND).view(x.shape)

    return run


def _prompt(module: Prompt, own: Own) -> Run:
    """Tokens of the clients' own at the end of the sequence."""

    def append(x_BND: Tensor, layer: int) -> Tensor:
        tokens = own["tokens"]
        tokens_GPD = tokens[:, layer] if tokens.dim() == 4 else tokens
        each = len(x_BND) // len(tokens_GPD)
        prompts_GBPD = tokens_GPD.unsqueeze(1).expand(-1, each, -1, -1)
        prompts_BPD = module.dropout[layer](prompts_GBPD.flatten(0, 1))
        return torch.cat((x_BND, prompts_BPD.to(x_BND.dtype)), dim=1)

    return append


def _is_plain_lora(module: _Lora) -> bool:
    """Whether a layer is LoRA or DoRA without what would need a form of its own."""
    names = list(module.active_adapters)
    if len(names) != 1 or module.merged or module.disable_adapters:
        return False
    variant = type(module.lora_variant.get(names[0])).__name__
    bias = module.base_layer.bias
    if variant == "DoraLinearVariant":  # it takes the bias out again
        return bias is None or not bias.requires_grad
    return variant == "NoneType" and module.lora_B[names[0]].bias is None


def _lora(module: _Lora, own: Own) -> Run:
    """(W + s B_k A_k) x + b; in DoRA with m_k / |W + s B_k A_k|, row by row, before the product."""
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
        low_GNR = torch.bmm(_apart(module.lora_dropout[name](x), len(a_GRI)), a_GRI.mT)
        base_GNO = _apart(base, len(a_GRI))
        return torch.baddbmm(base_GNO, low_GNR, b_GOR.mT, alpha=scaling).view(base.shape)

    def decomposed(x: Tensor, *args: object, **options: object) -> Tensor:
        a_GRI, b_GOR = factors()
        base = module.base_layer(x, *args, **options)
        bias = module.base_layer.bias
        base_GNO = _apart(base if bias is None else base - bias, len(a_GRI))
        with torch.no_grad():
            norm_GO = _row_norms(module, a_GRI, b_GOR, scaling)
        low_GNR = torch.bmm(_apart(x, len(a_GRI)), a_GRI.mT)
        high_GNO = torch.baddbmm(base_GNO, low_GNR, b_GOR.mT, alpha=scaling)
        y_GNO = (own[magnitude] / norm_GO).unsqueeze(1) * high_GNO
        return (y_GNO if bias is None else y_GNO + bias).view(base.shape)

    return decomposed if magnitude in own else plain


def _row_norms(module: _Lora, a_GRI: Tensor, b_GOR: Tensor, scaling: float) -> Tensor:
    """Norms [G, O] of the rows of W + s B A, without making that matrix for every client."""
    weight_OI = module.base_layer.weight
    weight_OI = weight_OI.T if module.fan_in_fan_out else weight_OI
    crossed_GO = (torch.matmul(weight_OI, a_GRI.mT) * b_GOR).sum(-1)
    added_GO = (torch.bmm(b_GOR, torch.bmm(a_GRI, a_GRI.mT)) * b_GOR).sum(-1)
    squares_GO = weight_OI.pow(2).sum(1) + 2 * scaling * crossed_GO + scaling**2 * added_GO
    return squares_GO.clamp(min=0).sqrt()


def _ia3(module: _Ia3, own: Own) -> Run:
    """A scale of the clients' own on a layer's output, or on the input of a feed-forward one."""
    (name,) = module.active_adapters

    def run(x: Tensor, *args: object, **options: object) -> Tensor:
        scale_G1D = own[f"ia3_l.{name}"].flatten(1).unsqueeze(1)
        clients = len(scale_G1D)
        if module.is_feedforward:
            scaled = (_apart(x, clients) * scale_G1D).view(x.shape)
            return cast(Tensor, module.base_layer(scaled, *args, **options))
        y: Tensor = module.base_layer(x, *args, **options)
        return (_apart(y, clients) * scale_G1D).view(y.shape)

    return run


_LORA = Form(_lora, whole=True)
_RMS = Form(_rms_norm, ("weight",))

_FORMS: Mapping[str, Form] = {
    "torch.nn.modules.linear.Linear": Form(_linear, ("weight", "bias")),
    "torch.nn.modules.normalization.LayerNorm": Form(_layer_norm, ("weight", "bias")),
    "torch.nn.modules.conv.Conv2d": Form(_convolution, ("bias",)),
    "torch.nn.modules.conv.Conv3d": Form(_convolution, ("bias",)),
    "transformers.pytorch_utils.Conv1D": Form(_added_bias_1d, ("bias",)),
    "transformers.models.llama.modeling_llama.LlamaRMSNorm": _RMS,
    "transformers.models.qwen2.modeling_qwen2.Qwen2RMSNorm": _RMS,
    "transformers.models.qwen3.modeling_qwen3.Qwen3RMSNorm": _RMS,
    "fedpeft.tuning.prompt.Prompt": Form(_prompt, ("tokens",), method="append"),
    "peft.tuners.lora.layer.Linear": _LORA,
    "peft.tuners.ia3.layer.Linear": Form(_ia3, whole=True),
}
"""By the full name of the class, so that `peft` and `transformers` need not be imported."""
