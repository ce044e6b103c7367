"""Initialisation of heads: new weights for the last layers, from the seed alone.

    "normal"   weight ~ N(0, 0.02²) truncated to [-2, 2], bias = 0
    "paper"    weight, bias ~ U(-1/sqrt(d), 1/sqrt(d)), d inputs

The values depend only on the seed and the head's shape, not on how the rest of the model was
built: all tuning methods start from the same head.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from fedpeft.core import seeds
from fedpeft.core.errors import ModelError

HEAD_INITS = ("normal", "paper")
"""Names of the initialisations."""


def init_head(module: nn.Module, paths: Sequence[str], *, seed: int, how: str = "normal") -> None:
    """Initialise every linear layer under `paths` with new weights, in place.

    Other layers under the paths (a normalisation) keep theirs. A model on `meta` is not changed.

    Args:
      module: the model that holds the head.
      paths: module paths of the head, in order.
      seed: root seed; the head has a derived seed of its own.
      how: `normal` or `paper`.

    Raises:
      ModelError: if `how` is unknown.

    Example:
      >>> import torch, fedpeft
      >>> net = torch.nn.ModuleDict({"body": torch.nn.Linear(4, 4), "fc": torch.nn.Linear(4, 2)})
      >>> fedpeft.init_head(net, ["fc"], seed=1)
      >>> net["fc"].bias.tolist()
      [0.0, 0.0]
    """
    if how not in HEAD_INITS:
        raise ModelError(f"head_init {how!r}: unknown; choose one of {', '.join(HEAD_INITS)}")
    generator = seeds.generator(seed, "head")
    for path in paths:
        for layer in module.get_submodule(path).modules():
            if isinstance(layer, nn.Linear) and not layer.weight.is_meta:
                _init_linear(layer, generator, how)


def _init_linear(layer: nn.Linear, generator: torch.Generator, how: str) -> None:
    bound = 1 / math.sqrt(layer.in_features)
    weight = torch.empty(layer.weight.shape)
    bias = torch.zeros(layer.out_features)
    if how == "paper":
        weight.uniform_(-bound, bound, generator=generator)
        bias.uniform_(-bound, bound, generator=generator)
    else:
        nn.init.trunc_normal_(weight, std=0.02, generator=generator)
    with torch.no_grad():
        layer.weight.copy_(weight)
        if layer.bias is not None:
            layer.bias.copy_(bias)


def name_classes(module: nn.Module, names: Sequence[str]) -> None:
    """Write the names of the classes into a model's config; () changes nothing.

    Classes that the model has beyond the names are called as `transformers` calls them.
    """
    config: Any = getattr(module, "config", None)
    if not names or not hasattr(config, "id2label"):
        return
    count = max(len(names), int(config.num_labels))
    shown = [*names, *(f"LABEL_{number}" for number in range(len(names), count))]
    config.id2label = dict(enumerate(shown))
    config.label2id = {name: number for number, name in enumerate(shown)}
