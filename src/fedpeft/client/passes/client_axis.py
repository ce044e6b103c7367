"""Layers with a client axis: the trained layers of a model, computed for K clients at once.

    frozen layer     [K*B, T, I] ──W──> [K*B, T, O]                 unchanged: one long batch
    linear, norm     [K, B*T, I] ──W_k, b_k──> [K, B*T, O]          one batched product
    any other        vmap over the clients of this module alone     [K, B, ...] -> [K, B, ...]

A form replaces a module's `forward` (or another method) while a pass runs; all other modules do not
change, because they process the rows of a batch independently. A form reads the values of the
clients in the pass from `Live`. Linear layers and layer norms have forms of their own because
`torch.func.vmap` took 1.2 to 1.6 times as long for them (docs/decisions/012-passes-and-vmap.md).
Legend: G clients of a pass, N rows of each client (examples times tokens), B rows of the whole
pass, I in, O out, D width.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedpeft.models.stored import without_bias
from fedpeft.tuning.dropout import DropoutKeys


@dataclass
class Live:
    """The current values of the clients: wire name -> [G, *shape], one row per client."""

    values: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Own:
    """The trained parameters of one module by the module's own names: [G, *shape] each.

    Attributes:
      wire: own name -> wire name.
      live: holder of the clients' values.
      dropout: dropout keys of the rows in the pass.
    """

    wire: Mapping[str, str]
    live: Live
    dropout: DropoutKeys

    def __contains__(self, name: str) -> bool:
        return name in self.wire

    def __getitem__(self, name: str) -> Tensor:
        return self.live.values[self.wire[name]]


Run = Callable[..., object]
"""The replacement of a method."""


def linear(module: nn.Linear, own: Own) -> Run:
    """Return a linear layer in which each client has its own weight, or only its own bias."""
    return _matrix(module, own) if "weight" in own else _added_bias(module, own)


def _matrix(module: nn.Linear, own: Own) -> Run:
    """Return a linear layer with one weight per client: y = x W_k^T + b_k."""

    def run(x: Tensor) -> Tensor:
        weight_GOI = own["weight"]
        x_GNI = _apart(x, len(weight_GOI))
        bias: Tensor | None = own["bias"].unsqueeze(1) if "bias" in own else module.bias
        if bias is None:
            return torch.bmm(x_GNI, weight_GOI.mT).view(*x.shape[:-1], -1)
        return torch.baddbmm(bias, x_GNI, weight_GOI.mT).view(*x.shape[:-1], -1)

    return run


def _added_bias(module: nn.Linear, own: Own) -> Run:
    """Return a linear layer with one product for all clients, then each client's own bias."""

    def run(x: Tensor) -> Tensor:
        bias_GO = own["bias"]
        y_GNO = without_bias(module, _apart(x, len(bias_GO)))
        return y_GNO.add_(bias_GO.unsqueeze(1)).view(*x.shape[:-1], -1)

    return run


def layer_norm(module: nn.LayerNorm, own: Own) -> Run:
    """Return a layer norm in which each client has its own gain and bias, as far as they train."""

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


def vmapped(module: nn.Module, own: Own, method: str = "forward") -> Run:
    """Return a function that maps a module's method over the clients, by `torch.func.vmap`.

    The method's first argument is the batch; a batch of one row (positions) is repeated.
    """
    stock = copy.copy(module)  # keeps the original `forward` while the module's is replaced
    call = stock if method == "forward" else _Call(stock, method)
    prefix = "" if method == "forward" else "module."

    def run(x: Tensor, *args: object, **options: object) -> Tensor:
        keys = own.dropout.keys_B
        assert keys is not None, "a pass has keys"
        x = x.expand(len(keys), *x.shape[1:]) if len(x) == 1 else x
        values = {prefix + name: own[name] for name in own.wire}
        clients = len(next(iter(values.values())))

        def of_client(values: Mapping[str, Tensor], x: Tensor, keys_B: Tensor) -> Tensor:
            with own.dropout.using(keys_B):
                y: Tensor = torch.func.functional_call(call, dict(values), (x, *args), options)
            return y

        x_GB, keys_GB = (v.reshape(clients, -1, *v.shape[1:]) for v in (x, keys))
        return torch.func.vmap(of_client)(values, x_GB, keys_GB).flatten(0, 1)

    return run


class _Call(nn.Module):
    """A method of a module as a module, whose parameters `torch.func` can replace."""

    def __init__(self, module: nn.Module, method: str) -> None:
        super().__init__()
        self.module, self.method = module, method

    def forward(self, *args: object) -> object:
        """Call the method."""
        return getattr(self.module, self.method)(*args)


def _apart(x: Tensor, clients: int) -> Tensor:
    """Reshape [G * B, ..., D] to [G, N, D]."""
    return x.reshape(clients, -1, x.shape[-1])
