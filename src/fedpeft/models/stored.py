"""Frozen weights in fewer bits: stored small, computed with in float32, layer by layer.

    float32      4 bytes a weight
    bfloat16     2 bytes      linear layers and embeddings; widened when the layer runs
    int8         1 byte       linear layers: round(127 w / largest of the row), and the largest
    nf4          0.56 bytes   linear layers: 16 levels of a normal distribution, blocks of 64

A layer's weight is widened for its forward pass and again for its backward pass, and thrown away:
at most one layer is in float32 at a time. Where a device computes in half precision (autocast), the
weight is widened to that instead. What trains, norms, biases and new heads stay in float32. A
checkpoint of bfloat16 gives the same numbers whether it is stored so or in float32.

Legend: O outputs, I inputs, N rows.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from fedpeft.models.packings import PACKINGS
from fedpeft.models.storage import Storage


def storable(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield paths and modules whose weight can be stored in fewer bits.

    They are linear layers and embeddings of which no other kind of module holds the weight too.
    """
    held: dict[int, list[nn.Module]] = {}
    for part in module.modules():
        for parameter in part.parameters(recurse=False):
            held.setdefault(id(parameter), []).append(part)
    for path, part in module.named_modules():
        weight = getattr(part, "weight", None) if type(part) in _STORED else None
        if weight is not None and all(type(other) in _STORED for other in held[id(weight)]):
            yield path, part


def cast(module: nn.Module, dtype: torch.dtype, paths: Collection[str]) -> None:
    """Bring the weights of storable layers to a type, and all other parameters to float32.

    Args:
      module: changed in place.
      dtype: the type.
      paths: of modules that stay in float32, with all inside.
    """
    under = tuple(f"{path}." for path in paths)
    kept = {
        id(part.weight)
        for path, part in storable(module)
        if not f"{path}.".startswith(under or ("\0",))
    }
    for parameter in module.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype if id(parameter) in kept else torch.float32)


def num_weights(module: nn.Module) -> int:
    """Return the number of a module's parameters, whatever their storage."""
    products = (part for part in module.modules() if isinstance(part, _PRODUCTS))
    packed = [part for part in products if part.weight_scale is not None]
    whole = sum(math.prod(part.read.keywords["shape"]) for part in packed)
    codes = sum(part.weight.numel() for part in packed)
    found: int = sum(parameter.numel() for parameter in module.parameters()) + whole - codes
    return found


def num_bytes(module: nn.Module) -> int:
    """Return the bytes of a module's parameters and buffers, as they are stored."""
    held = [*module.parameters(), *module.buffers()]
    return sum(tensor.numel() * tensor.element_size() for tensor in held)


def store(module: nn.Module, storage: Storage, head: Collection[str]) -> None:
    """Store the frozen weights of a module, in place; what trains is brought to float32.

    Args:
      module: whose trained parameters require gradients; also on `meta`, for plans.
      storage: how.
      head: paths of the head, which is not quantised.
    """
    if storage.plain:
        return
    for parameter in module.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    under = tuple(f"{path}." for path in head)
    found = list(storable(module))
    spared = {id(part.weight) for path, part in found if _spared(path, part, under)}
    for _, part in found:
        weight = _weight(part)
        if weight.requires_grad:
            continue
        turned = type(part) is Conv1D
        _widen(part)
        quantised = storage.quantization != "none" and id(weight) not in spared
        if not quantised:
            weight.data = weight.data.to(storage.dtype)
            continue
        packing = PACKINGS[storage.quantization]
        weight_OI = weight.detach().float()
        weight_OI = weight_OI.mT.contiguous() if turned else weight_OI
        codes, scales = packing.pack(weight_OI)
        vars(part)["read"] = functools.partial(packing.unpack, shape=tuple(weight_OI.shape))
        part.weight = nn.Parameter(codes, requires_grad=False)
        part.weight_scale = scales


def unstore(module: nn.Module) -> None:
    """Bring all weights of a module back to float32, in place: the numbers of their storage."""
    plain = {stored: kind for kind, stored in _STORED.items()}
    for part in module.modules():
        kind = plain.get(type(part))
        if kind is None:
            continue
        if isinstance(part, _PRODUCTS) and part.weight_scale is not None:
            weight_OI = part.read(part.weight, part.weight_scale, dtype=torch.float32)
            weight = weight_OI.mT.contiguous() if kind is Conv1D else weight_OI
            part.weight = nn.Parameter(weight, requires_grad=False)
        _narrow(part)
    for parameter in module.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.float()


@contextlib.contextmanager
def runnable(module: nn.Module, storage: Storage) -> Iterator[None]:
    """Let a module before tuning, as it is loaded for a storage, compute within the context."""
    parts = [] if storage.dtype is torch.float32 else [part for _, part in storable(module)]
    for part in parts:
        _widen(part)
    try:
        yield
    finally:
        for part in parts:
            _narrow(part)


@contextlib.contextmanager
def weights_out_of_sight(module: nn.Module) -> Iterator[None]:
    """Show weights in half precision as zeros in float32 within the context.

    Libraries give what they add to a layer the type of its weight, and would round it.
    """
    weights = {id(weight): weight for _, part in storable(module) for weight in [_weight(part)]}
    kept = [(w, w.data) for w in weights.values() if w.dtype is not torch.float32]
    for weight, data in kept:
        weight.data = torch.zeros((), device=data.device).expand(data.shape)
    try:
        yield
    finally:
        for weight, data in kept:
            weight.data = data


def _weight(part: nn.Module) -> nn.Parameter:
    assert isinstance(part.weight, nn.Parameter), "a storable layer has a weight"
    return part.weight


def _widen(part: nn.Module) -> None:
    """Let a layer widen its weight whenever it runs."""
    turned = type(part) is Conv1D
    object.__setattr__(part, "__class__", _STORED[type(part)])
    part.register_buffer("weight_scale", None)
    vars(part)["read"] = functools.partial(_half, turned=turned)


def _narrow(part: nn.Module) -> None:
    """Give a layer its usual kind back."""
    plain = {stored: kind for kind, stored in _STORED.items()}
    del part.weight_scale
    del vars(part)["read"]
    object.__setattr__(part, "__class__", plain[type(part)])


def settle(module: nn.Module, storage: Storage, head: Collection[str]) -> None:
    """Give a module before tuning, in float32, the numbers that `store` would leave in it."""
    trains = {id(p): p.requires_grad for p in module.parameters()}
    module.requires_grad_(False)
    store(module, storage, head)
    unstore(module)
    for parameter in module.parameters():
        parameter.requires_grad_(trains.get(id(parameter), True))


def without_bias(layer: nn.Linear, x: Tensor) -> Tensor:
    """Return x W^T of a linear layer, however its weight is stored."""
    if isinstance(layer, StoredLinear):
        return _product(layer, x, biased=False)
    return F.linear(x, layer.weight)


class StoredLinear(nn.Linear):
    """A linear layer whose frozen weight [O, I] is stored in fewer bits."""

    read: functools.partial[Tensor]
    weight_scale: Tensor | None

    def forward(self, x: Tensor) -> Tensor:
        """Return x W^T + b, in float32 or in the type of autocast."""
        return _product(self, x)


class StoredConv1D(Conv1D):  # type: ignore[misc]  # transformers has no types here
    """GPT-2's linear layer, whose frozen weight [I, O] is stored in fewer bits."""

    read: functools.partial[Tensor]
    weight_scale: Tensor | None

    def forward(self, x: Tensor) -> Tensor:
        """Return x W + b, in float32 or in the type of autocast."""
        return _product(self, x)


class StoredEmbedding(nn.Embedding):
    """An embedding whose frozen weight is stored in half precision."""

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the tokens' vectors, in float32 or in the type of autocast."""
        return super().forward(tokens).to(_compute_type(tokens.device.type))


_PRODUCTS = (StoredLinear, StoredConv1D)
_STORED: Mapping[type[nn.Module], type[nn.Module]] = {
    nn.Linear: StoredLinear,
    Conv1D: StoredConv1D,
    nn.Embedding: StoredEmbedding,
}
"""Kind of a layer -> its kind once its weight is stored."""


def _half(weight: Tensor, *, turned: bool, dtype: torch.dtype) -> Tensor:
    """Widen a weight in half precision; one that is `turned` is [I, O]."""
    return weight.to(dtype).mT if turned else weight.to(dtype)


def _spared(path: str, part: nn.Module, under: tuple[str, ...]) -> bool:
    """Whether a layer is not quantised: an embedding, or a layer of the head."""
    return isinstance(part, nn.Embedding) or f"{path}.".startswith(under or ("\0",))


def _compute_type(device: str) -> torch.dtype:
    """Return the type in which layers compute now."""
    on = torch.is_autocast_enabled(device)
    return torch.get_autocast_dtype(device) if on else torch.float32


def _product(layer: StoredLinear | StoredConv1D, x: Tensor, *, biased: bool = True) -> Tensor:
    dtype = _compute_type(x.device.type)
    bias = layer.bias.to(dtype) if biased and layer.bias is not None else None
    scales = [] if layer.weight_scale is None else [layer.weight_scale]
    read = functools.partial(layer.read, dtype=dtype)
    run: Callable[..., Tensor] = _Product.apply
    found = run(x.to(dtype), bias, read, layer.weight, *scales)
    return found


class _Context(Protocol):
    """What a forward pass leaves for its backward pass."""

    read: Callable[..., Tensor]
    needs_input_grad: Sequence[bool]
    saved_tensors: Sequence[Tensor]

    def save_for_backward(self, *tensors: Tensor) -> None: ...


class _Product(torch.autograd.Function):
    """x W^T + b, where W is read from what is stored, once forward and once backward."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor, bias: Tensor | None, read: Callable[..., Tensor], *stored: Tensor
    ) -> Tensor:
        """Return the product [..., O] of x [..., I]."""
        return F.linear(x, read(*stored), bias)

    @staticmethod
    def setup_context(ctx: _Context, inputs: Sequence[Any], output: Tensor) -> None:
        """Keep what is stored, and not the weight."""
        _, _, ctx.read, *stored = inputs
        ctx.save_for_backward(*stored)

    @staticmethod
    def backward(ctx: _Context, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of x and of the bias."""
        (grad,) = grads
        stored = ctx.saved_tensors  # a checkpoint gives them out once
        rows_NO = grad.reshape(-1, grad.shape[-1])
        grad_x = grad_bias = None
        if ctx.needs_input_grad[0]:
            weight_OI = ctx.read(*stored)
            grad_x = (rows_NO @ weight_OI).view(*grad.shape[:-1], -1)
        if ctx.needs_input_grad[1]:
            grad_bias = rows_NO.sum(0)
        return grad_x, grad_bias, None, *(None for _ in stored)
