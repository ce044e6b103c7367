"""Adapter tuning: a residual bottleneck after the MLP of each block, before its skip addition.

    m = MLP(LN2(x))
    x <- x + m + Up(GELU(Down(m)))        Down: d -> d / reduction, Up: back to d

One bottleneck is shared by all blocks, or each block has its own. `init = "identity"` starts from
Up = 0; `init = "zeros"` also starts from Down = 0, where only the bias of Up ever gets a gradient.

References: Houlsby et al., Parameter-Efficient Transfer Learning for NLP, ICML 2019; Sun et al.,
IEEE BigData 2024.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedpeft.core.errors import TuningError
from fedpeft.models.families import hidden_size
from fedpeft.tuning.prepared import (
    ADAPTER_ROOT,
    ModelToTune,
    PreparedModel,
    chosen_blocks,
    head_parameters,
)


class Bottleneck(nn.Module):
    """`Up(GELU(Down(m)))` on the last axis.

    Args:
      width: size of the last axis.
      inner: size of the bottleneck, >= 1.
      zeros: start from zeros throughout, instead of a Xavier-uniform Down weight.
      device: device of the new tensors (`meta` for plans).
    """

    def __init__(self, width: int, inner: int, *, zeros: bool, device: torch.device) -> None:
        super().__init__()
        self.down = nn.Linear(width, inner, device=device)
        self.up = nn.Linear(inner, width, device=device)
        for parameter in self.parameters():
            nn.init.zeros_(parameter)
        if not zeros:
            nn.init.xavier_uniform_(self.down.weight)

    def forward(self, m: Tensor) -> Tensor:
        """Return the correction to `m`, of the same shape."""
        return cast(Tensor, self.up(F.gelu(self.down(m))))


def _add_bottleneck(
    bottleneck: Bottleneck, path: str, module: nn.Module, inputs: object, output: object
) -> Tensor:
    """A forward hook: add the bottleneck's correction to a module's output."""
    width = bottleneck.down.in_features
    if not isinstance(output, Tensor) or output.shape[-1] != width:
        found = list(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise TuningError(
            f"tuning.method adapter: module {path!r} returned {found}; an adapter needs a "
            f"tensor whose last axis is {width}; name another module in `after`"
        )
    return output + cast(Tensor, bottleneck(output))


def adapter(model: ModelToTune) -> PreparedModel:
    """Add adapters, and train them and the head.

    Raises:
      TuningError: if the adapted modules are unknown, missing, or cannot share one adapter.
    """
    module = model.loaded.module
    sites = _sites(model)
    widths = {key: _width(model, path) for key, path in sites.items()}
    bottlenecks = _bottlenecks(model, widths)
    for key, path in sites.items():
        hook = partial(_add_bottleneck, bottlenecks[key], path)  # unlike a closure, picklable
        module.get_submodule(path).register_forward_hook(hook)
    shared = bool(model.options["shared"])
    part = next(iter(bottlenecks.values())) if shared else nn.ModuleDict(bottlenecks)
    host = _host(module, next(iter(sites.values())))
    module.get_submodule(host).add_module(ADAPTER_ROOT, part)
    prefix = f"{host}.{ADAPTER_ROOT}".lstrip(".")
    trained = {f"{prefix}.{name}" for name, _ in part.named_parameters()}
    return PreparedModel(module, trained | head_parameters(model.loaded))


def _host(module: nn.Module, site: str) -> str:
    """Return the path of the module that holds the adapter.

    This is the root, unless it is a `Sequential`, which would run the adapter as a further layer.
    """
    if not isinstance(module, nn.Sequential):
        return ""
    inner = module.get_submodule(site).named_modules(prefix=site)
    paths = [path for path, part in inner if not isinstance(part, nn.Sequential)]
    return str(paths[0])


def _sites(model: ModelToTune) -> dict[str, str]:
    """Map the adapter's key in wire names to the path of the module whose output it takes."""
    loaded = model.loaded
    after = cast("Sequence[str]", model.options["after"])
    if after:
        if model.blocks is not None:
            raise TuningError("tuning.blocks and `after` both say where adapters go; give one")
        names = [name for name, _ in loaded.module.named_modules()]
        if missing := [path for path in after if path not in names]:
            raise TuningError(
                f"tuning.method adapter: `after` names {missing[0]!r}, which {loaded.source} does "
                f"not have; its first modules are {names[1:7]}"
            )
        return {str(i): path for i, path in enumerate(after)}
    if not loaded.family.mlp:
        known = [name for name, part in loaded.module.named_modules() if _own_width(part)]
        raise TuningError(
            f"tuning.method adapter: {loaded.source} is of no known model family; name the "
            "modules whose outputs get an adapter, as `after = [...]` in [tuning.options]; "
            f"the first suitable ones are {known[:4]}"
        )
    return {str(i): loaded.family.mlp.format(i) for i in chosen_blocks(model)}


def _bottlenecks(model: ModelToTune, widths: Mapping[str, int]) -> dict[str, Bottleneck]:
    """Make a bottleneck for each key, or one for all of them if shared."""
    if not model.options["shared"]:
        return {key: _new(model, width) for key, width in widths.items()}
    if len(set(widths.values())) > 1:
        raise TuningError(
            f"tuning.method adapter: modules of widths {sorted(set(widths.values()))} cannot share "
            "one adapter; set `shared = false` or name modules of one width in `after`"
        )
    return dict.fromkeys(widths, _new(model, next(iter(widths.values()))))


def _new(model: ModelToTune, width: int) -> Bottleneck:
    inner = max(1, width // cast(int, model.options["reduction"]))
    device = next(model.loaded.module.parameters()).device
    return Bottleneck(width, inner, zeros=model.options["init"] == "zeros", device=device)


def _width(model: ModelToTune, path: str) -> int:
    """Return the size of the last axis of a module's output, from the config or its last layer."""
    loaded = model.loaded
    if not model.options["after"]:
        return hidden_size(loaded.module, loaded.family)
    for part in reversed(list(loaded.module.get_submodule(path).modules())):
        if width := _own_width(part):
            return width
    raise TuningError(
        f"tuning.method adapter: the output width of module {path!r} is unknown: it has no linear "
        "layer or layer norm; name such a layer in `after`"
    )


def _own_width(part: nn.Module) -> int:
    if isinstance(part, nn.Linear):
        return part.out_features
    return part.normalized_shape[-1] if isinstance(part, nn.LayerNorm) else 0
