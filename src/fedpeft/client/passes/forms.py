"""Layers with a client axis: what the trained layers of a model compute while K clients train.

    frozen layer     [K*B, T, I] ──W──> [K*B, T, O]                 as ever: one long batch
    trained layer    [K, B*T, I] ──W_k, b_k──> [K, B*T, O]          one batched product

A form takes the place of a module's `forward` (or of one method) while a pass runs; all other
modules stay as they are, because they treat the rows of a batch apart. A form reads the values of
the clients in the pass from `Live`. Legend: G clients of a pass, N numbers a client in the middle
(examples times tokens), B rows of the whole pass, T tokens, V vocabulary, I in, O out, D width,
P prompt tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedpeft.tuning.prompt import Prompt

__all__ = [
    "Live",
    "Own",
    "Run",
    "apart",
    "conv1d",
    "convolution",
    "embedding",
    "layer_norm",
    "linear",
    "prompt",
    "rms_norm",
    "vit_embeddings",
]


T = TypeVar("T", bound=Tensor | None)


@dataclass
class Live:
    """The values that the model computes with now.

    Attributes:
      values: wire name -> [G, *shape], one row a client of the pass.
      rows: examples of the pass, all clients together.
    """

    values: Mapping[str, Tensor] = field(default_factory=dict)
    rows: int = 0


@dataclass(frozen=True)
class Own:
    """The trained parameters of one module by the module's own names: [G, *shape] each."""

    wire: Mapping[str, str]
    live: Live

    def __contains__(self, name: str) -> bool:
        return name in self.wire

    def __getitem__(self, name: str) -> Tensor:
        return self.live.values[self.wire[name]]

    def get(self, name: str, frozen: T) -> Tensor | T:
        """Return the clients' values, or the frozen one where the parameter does not train."""
        wire = self.wire.get(name)
        return frozen if wire is None else self.live.values[wire]

    def values(self) -> Iterator[Tensor]:
        """Yield the values in the order of the module's parameters."""
        return (self.live.values[name] for name in self.wire.values())


Run = Callable[..., object]
"""What takes the place of a method."""


class _Conv1D(Protocol):
    """GPT-2's linear layer."""

    weight: Tensor
    bias: Tensor


class _RmsNorm(Protocol):
    """A norm of `transformers` without a mean."""

    variance_epsilon: float


class _ViTEmbeddings(Protocol):
    """The part of `transformers`' ViT embeddings that we use."""

    cls_token: Tensor
    position_embeddings: Tensor
    patch_embeddings: Callable[[Tensor], Tensor]


def apart(x: Tensor, clients: int) -> Tensor:
    """Return [G, N, D] of [G * B, ..., D]."""
    return x.reshape(clients, -1, x.shape[-1])


def linear(module: nn.Linear, own: Own) -> Run:
    """Return a linear layer with weights, or with biases only, of the clients' own."""
    return _matrix(module, own) if "weight" in own else _added_bias(module, own)


def _matrix(module: nn.Linear, own: Own) -> Run:
    """Weights of the clients' own: y = x W_k^T + b_k."""

    def run(x: Tensor) -> Tensor:
        weight_GOI = own["weight"]
        x_GNI = apart(x, len(weight_GOI))
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
        y_GNO = F.linear(apart(x, len(bias_GO)), module.weight)
        return y_GNO.add_(bias_GO.unsqueeze(1)).view(*x.shape[:-1], -1)

    return run


def layer_norm(module: nn.LayerNorm, own: Own) -> Run:
    """Return a layer norm with gains and biases of the clients' own, where they train."""

    def run(x: Tensor) -> Tensor:
        if "weight" not in own:
            y = F.layer_norm(x, module.normalized_shape, module.weight, None, module.eps)
            bias_GD = own["bias"]
            return apart(y, len(bias_GD)).add_(bias_GD.unsqueeze(1)).view(x.shape)
        y = F.layer_norm(x, module.normalized_shape, None, None, module.eps)
        gain_G1D = own["weight"].unsqueeze(1)
        y_GND = apart(y, len(gain_G1D))
        bias = own["bias"].unsqueeze(1) if "bias" in own else module.bias
        if bias is None:
            return (y_GND * gain_G1D).view(x.shape)
        return torch.addcmul(bias, y_GND, gain_G1D).view(x.shape)

    return run


def rms_norm(module: _RmsNorm, own: Own) -> Run:
    """Return a norm without a mean, with gains of the clients' own."""

    def run(x: Tensor) -> Tensor:
        wide = x.to(torch.float32)
        scale = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + module.variance_epsilon)
        gain_GD = own["weight"]
        y_GND = apart((wide * scale).to(x.dtype), len(gain_GD))
        return (gain_GD.unsqueeze(1) * y_GND).view(x.shape)

    return run


def embedding(module: nn.Embedding, own: Own) -> Run:
    """Return a table of the clients' own: they are one long table, of G times V rows."""

    def run(ids: Tensor) -> Tensor:
        table_GVD = own["weight"]
        clients, size, _ = table_GVD.shape
        ids = ids.expand(own.live.rows, *ids.shape[1:]) if len(ids) == 1 else ids
        first_G = torch.arange(clients, device=ids.device) * size
        places = ids.reshape(clients, -1) + first_G.unsqueeze(1)
        found = F.embedding(places, table_GVD.flatten(0, 1)).view(*ids.shape, -1)
        if module.padding_idx is None:
            return found
        padding = (ids == module.padding_idx).unsqueeze(-1)
        return torch.where(padding, found.detach(), found)

    return run


def convolution(module: nn.Conv2d | nn.Conv3d, own: Own) -> Run:
    """Return one convolution for all, or one of G groups with kernels of the clients' own."""

    def run(x: Tensor) -> Tensor:
        clients = len(next(iter(own.values())))
        y = _grouped(module, x, own["weight"]) if "weight" in own else _together(module, x)
        bias = own.get("bias", module.bias)
        if bias is None:
            return y
        ones = (1,) * (y.dim() - 2)
        y_GBO = y.view(clients, -1, *y.shape[1:])
        return (y_GBO + bias.view(-1, 1, bias.shape[-1], *ones)).flatten(0, 1)

    return run


def _together(module: nn.Conv2d | nn.Conv3d, x: Tensor) -> Tensor:
    y: Tensor = module._conv_forward(x, module.weight, None)
    return y


def _grouped(module: nn.Conv2d | nn.Conv3d, x: Tensor, weight_GOIhw: Tensor) -> Tensor:
    """Clients become groups of channels: [G * B, I, H, W] -> [B, G * I, H, W] and back."""
    clients = len(weight_GOIhw)
    side_by_side = x.view(clients, -1, *x.shape[1:]).transpose(0, 1).flatten(1, 2)
    y = F.conv2d(
        side_by_side, weight_GOIhw.flatten(0, 1), None,
        module.stride, module.padding, module.dilation, clients,
    )  # fmt: skip
    return y.view(len(y), clients, -1, *y.shape[2:]).transpose(0, 1).flatten(0, 1)


def conv1d(module: _Conv1D, own: Own) -> Run:
    """Return GPT-2's linear layer, whose weight is [I, O]."""

    def run(x: Tensor) -> Tensor:
        clients = len(next(iter(own.values())))
        x_GNI = apart(x, clients)
        y_GNO = x_GNI @ own.get("weight", module.weight)
        bias = own["bias"].unsqueeze(1) if "bias" in own else module.bias
        return y_GNO.add_(bias).view(*x.shape[:-1], -1)

    return run


def vit_embeddings(module: _ViTEmbeddings, own: Own) -> Run:
    """Return a ViT's embeddings with class token and positions of the clients' own."""

    def run(pixel_values: Tensor, **options: object) -> Tensor:
        if any(options.values()):
            raise RuntimeError(f"no client axis for embeddings with {sorted(options)}")
        patches_BTD = module.patch_embeddings(pixel_values)
        rows = len(patches_BTD)
        cls_B1D = _each(own["cls_token"], rows) if "cls_token" in own else module.cls_token
        name = "position_embeddings"
        positions = _each(own[name], rows) if name in own else module.position_embeddings
        return torch.cat([cls_B1D.expand(rows, -1, -1), patches_BTD], 1) + positions

    return run


def _each(value_G1TD: Tensor, rows: int) -> Tensor:
    """Repeat each client's value for its rows: [B, T, D]."""
    per_client = rows // len(value_G1TD)
    return value_G1TD.expand(-1, per_client, -1, -1).flatten(0, 1)


def prompt(module: Prompt, own: Own) -> Run:
    """Return what appends tokens of the clients' own to a sequence."""

    def append(x_BND: Tensor, layer: int) -> Tensor:
        tokens = own["tokens"]
        tokens_GPD = tokens[:, layer] if tokens.dim() == 4 else tokens
        each = len(x_BND) // len(tokens_GPD)
        prompts_GBPD = tokens_GPD.unsqueeze(1).expand(-1, each, -1, -1)
        prompts_BPD = module.dropout[layer](prompts_GBPD.flatten(0, 1))
        return torch.cat((x_BND, prompts_BPD.to(x_BND.dtype)), dim=1)

    return append
