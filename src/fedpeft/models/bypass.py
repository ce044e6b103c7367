"""Skipping the frozen prefix of a model: its forward runs on stored features instead.

    embeddings   block 0 ... block k-1      block k ... head        the whole model
    placeholders that compute nothing   ^   the same modules        the rest
                                        features

No tensor is copied: the rest shares parameters and buffers with the model, so that training it
trains the model. Placeholders keep the attributes of the modules that they replace, because a
model's forward may read them.
Legend: B examples, T tokens, D width.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from fedpeft.models.families import Family, hidden_size, num_blocks

PREFIX = "prefix"
"""Batch key of stored features: [B, T, D], or [B, D] if one vector per example is enough."""

_PIXELS = "pixel_values"
_ENTRIES: Mapping[str, str] = {
    "bert": "bert.embeddings",
    "deit": "deit.embeddings",
    "dinov2": "dinov2.embeddings",
    "distilbert": "distilbert.embeddings",
    "gemma": "model.embed_tokens",
    "gpt2": "transformer.wte",
    "llama": "model.embed_tokens",
    "mistral": "model.embed_tokens",
    "qwen2": "model.embed_tokens",
    "qwen3": "model.embed_tokens",
    "roberta": "roberta.embeddings",
    "shufflenet-v2": "conv1",
    "videomae": "videomae.embeddings",
    "vit": "vit.embeddings",
}
"""Family -> path of its embeddings; the prefix of other families cannot be skipped."""

_BODIES: Mapping[str, tuple[str, ...]] = {
    "shufflenet-v2": ("maxpool", "stage2", "stage3", "stage4", "conv5")
}
"""Families without numbered blocks -> the modules between embeddings and head."""


@dataclass
class _Stored:
    """The features of the current forward pass.

    Attributes:
      value: [B, T, D] or [B, D]; None outside a forward pass.
      hidden: the tensor that the placeholder of the embeddings returns.
    """

    value: Tensor | None = None
    hidden: Tensor | None = None


def entry_of(family: Family) -> str | None:
    """Return the path of a family's embeddings; None if not known."""
    return _ENTRIES.get(family.name)


def skippable(module: nn.Module, family: Family) -> tuple[str, ...]:
    """Return the paths of the modules between embeddings and head, in the order of the forward."""
    if not family.block:
        return _BODIES.get(family.name, ())
    return tuple(family.block.format(i) for i in range(num_blocks(module, family)))


class Rest(nn.Module):
    """A model that starts from stored features; its batches hold them under `prefix`.

    Args:
      module: the whole model.
      family: family of the model.
      skipped: paths of the modules that are skipped, besides the embeddings.
      sites: paths of the modules that take the features as their first argument; the features of
        several sites are concatenated in this order.
      widths: width of each site's features.
    """

    def __init__(
        self,
        module: nn.Module,
        family: Family,
        skipped: Sequence[str],
        sites: Sequence[str],
        widths: Sequence[int],
    ) -> None:
        super().__init__()
        stored = _Stored()
        entry = _ENTRIES[family.name]
        parts = {path: _stand_in(module.get_submodule(path), _pass) for path in skipped}
        parts[entry] = _stand_in(module.get_submodule(entry), partial(_hidden, stored))
        start = 0
        for path, width in zip(sites, widths, strict=True):  # partials: closures are not picklable
            hook = partial(_put, stored, slice(start, start + width))
            parts[path] = put_features(module.get_submodule(path), hook)
            start += width
        self.inner = without(module, parts)
        self._stored = stored
        self._pixels = getattr(module, "main_input_name", _PIXELS) == _PIXELS
        tokens = 2 if self._pixels else 1
        self._dummy = (tokens, hidden_size(module, family)) if family.block else (1, 1, 1)

    def forward(self, prefix: Tensor, **inputs: object) -> object:
        """Return what the whole model returns.

        Args:
          prefix: the features of B examples.
          inputs: further inputs of the model; without any, zeros of the right size are used.
        """
        if not inputs.keys() - {"use_cache"}:
            inputs |= self._main_input(prefix)
        hidden = prefix if prefix.ndim == 3 else prefix.new_zeros(len(prefix), *self._dummy)
        self._stored.value, self._stored.hidden = prefix, hidden
        try:
            return self.inner(**inputs)
        finally:
            self._stored.value = self._stored.hidden = None

    def _main_input(self, prefix: Tensor) -> dict[str, Tensor]:
        if self._pixels:
            return {_PIXELS: prefix.new_zeros(len(prefix), 1, 1, 1)}
        tokens = prefix.shape[1] if prefix.ndim == 3 else 1
        shape = (len(prefix), tokens)
        return {"input_ids": torch.zeros(shape, dtype=torch.int64, device=prefix.device)}


def without(module: nn.Module, parts: Mapping[str, nn.Module]) -> nn.Module:
    """Return a module with some submodules replaced; all others are shared with the original.

    Args:
      module: the original, which is not changed.
      parts: path -> replacement.
    """
    root = _shell(module)
    shells: dict[str, nn.Module] = {"": root}
    for path, part in parts.items():
        *above, name = path.split(".")
        for depth in range(len(above)):
            place = ".".join(above[: depth + 1])
            if place not in shells:
                shells[place] = _shell(module.get_submodule(place))
                shells[".".join(above[:depth])]._modules[above[depth]] = shells[place]
        shells[".".join(above)]._modules[name] = part
    return root


def apart(module: nn.Module, paths: Iterable[str]) -> nn.Module:
    """Return a module whose submodules at some paths are shells, sharing all tensors.

    When a trainer replaces methods of the original for a while, these are not affected.
    """
    return without(module, {path: _shell(module.get_submodule(path)) for path in paths})


def put_features(module: nn.Module, hook: Callable[..., object]) -> nn.Module:
    """Return a shell of a module with one more forward pre-hook, which runs first."""
    shell = _shell(module)
    shell.register_forward_pre_hook(hook, with_kwargs=True, prepend=True)
    return shell


def _put(
    stored: _Stored,
    columns: slice,
    module: nn.Module,
    args: tuple[object, ...],
    kwargs: dict[str, object],
) -> tuple[tuple[object, ...], dict[str, object]]:
    """A forward pre-hook: replace the first argument by some columns of the features."""
    assert stored.value is not None, "set by Rest.forward"
    value = stored.value
    if (columns.start, columns.stop) != (0, value.shape[-1]):
        value = value[..., columns]
    if args:
        return (value, *args[1:]), kwargs
    return args, {**kwargs, next(iter(kwargs)): value}


def _hidden(stored: _Stored, *args: object, **kwargs: object) -> Tensor:
    """Return the stored hidden states: the forward of the embeddings' placeholder."""
    assert stored.hidden is not None, "set by Rest.forward"
    return stored.hidden


def _pass(*args: object, **kwargs: object) -> object:
    """Return the hidden states unchanged: the forward of a block's placeholder."""
    return args[0] if args else kwargs["hidden_states"]


def _stand_in(module: nn.Module, forward: Callable[..., object]) -> nn.Module:
    shell = _shell(module)
    for name in ("_forward_hooks", "_forward_pre_hooks"):
        shell.__dict__[name] = OrderedDict()
    shell.__dict__["forward"] = forward
    return shell


def _shell(module: nn.Module) -> nn.Module:
    """Return a shallow copy of a module: it shares parameters, buffers and submodules."""
    shell = copy.copy(module)
    for name in ("_modules", "_parameters", "_buffers"):
        shell.__dict__[name] = dict(shell.__dict__[name])
    for name in ("_forward_pre_hooks", "_forward_pre_hooks_with_kwargs"):
        shell.__dict__[name] = OrderedDict(shell.__dict__[name])
    return shell
