"""Adapter tuning: a residual bottleneck after the MLP of each block, before its skip addition.

In a model of no known family it comes after the last linear layer of each block, or after the last
convolution where blocks have no linear layer; there it acts on the channels.

    m = MLP(LN2(x))
    x <- x + m + Up(GELU(Down(m)))        Down: d -> d / reduction, Up: back to d

One bottleneck is shared by all blocks of one width, or each block has its own. `init = "identity"`
starts from Up = 0; `init = "zeros"` also starts from Down = 0, where only the bias of Up ever gets
a gradient.

References: Houlsby et al., Parameter-Efficient Transfer Learning for NLP, ICML 2019; Sun et al.,
IEEE BigData 2024.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from fedpeft.core.errors import TuningError
from fedpeft.models.families import hidden_size
from fedpeft.models.loaded import LoadedModel
from fedpeft.tuning.prepared import (
    ADAPTER_ROOT,
    ModelToTune,
    PreparedModel,
    chosen_blocks,
    head_parameters,
)
from fedpeft.tuning.targets import Targets, last_layers


@dataclass(frozen=True)
class _Place:
    """The module whose output gets a bottleneck.

    Attributes:
      path: of the module.
      width: size of the features in its output.
      axis: of the features: -1, or 1 after a convolution.
    """

    path: str
    width: int
    axis: int = -1


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
    bottleneck: Bottleneck, place: _Place, module: nn.Module, inputs: object, output: object
) -> Tensor:
    """A forward hook: add the bottleneck's correction to a module's output."""
    if not isinstance(output, Tensor) or output.shape[place.axis] != place.width:
        found = list(output.shape) if isinstance(output, Tensor) else type(output).__name__
        which = "last axis" if place.axis == -1 else "second axis"
        raise TuningError(
            f"tuning.method adapter: module {place.path!r} returned {found}; an adapter needs a "
            f"tensor whose {which} is {place.width}; name another module in `after`"
        )
    correction = cast(Tensor, bottleneck(output.movedim(place.axis, -1)))
    return output + correction.movedim(-1, place.axis)


def adapter(model: ModelToTune) -> PreparedModel:
    """Add adapters, and train them and the head.

    Raises:
      TuningError: if the adapted modules are unknown, missing, or cannot share one adapter.
    """
    module = model.loaded.module
    found = _sites(model)
    places = {key: _place(model, path) for key, path in found.items()}
    parts = _bottlenecks(model, places)
    for key, place in places.items():
        hook = partial(_add_bottleneck, parts[key], place)  # unlike a closure, picklable
        module.get_submodule(place.path).register_forward_hook(hook)
    part = _held(parts, shared=bool(model.options["shared"]))
    host = _host(module, next(iter(places.values())).path)
    module.get_submodule(host).add_module(ADAPTER_ROOT, part)
    prefix = f"{host}.{ADAPTER_ROOT}".lstrip(".")
    trained = {f"{prefix}.{name}" for name, _ in part.named_parameters()}
    return PreparedModel(
        module, trained | head_parameters(model.loaded), targets=_told(model, places)
    )


def _held(parts: Mapping[str, Bottleneck], *, shared: bool) -> nn.Module:
    """Return the module that holds the bottlenecks: the one that all share, or one for each key.

    Shared ones of several widths have the keys `width_96`, `width_192`.
    """
    if not shared:
        return nn.ModuleDict(parts)
    by_width = {part.down.in_features: part for part in parts.values()}
    if len(by_width) == 1:
        return next(iter(by_width.values()))
    return nn.ModuleDict({f"width_{width}": part for width, part in by_width.items()})


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
    if loaded.family.mlp:
        return {str(i): loaded.family.mlp.format(i) for i in chosen_blocks(model)}
    if paths := last_layers(loaded).modules:
        return {str(i): path for i, path in enumerate(paths)}
    raise TuningError(_nowhere(loaded))


def _nowhere(loaded: LoadedModel) -> str:
    """Say that no place was found, and name modules that could be one."""
    inside = tuple(f"{path}." for path in loaded.head)
    modules = loaded.module.named_modules()
    known = [n for n, part in modules if _own_width(part) and not f"{n}.".startswith(inside)]
    if not known:
        return (
            f"tuning.method adapter: {loaded.source} has no linear layer, convolution or layer "
            "norm outside its head; choose head, bias or full"
        )
    return (
        f"tuning.method adapter: {loaded.source} is of no known model family, and it has no "
        "numbered blocks that end in a linear layer; name the modules whose outputs get an "
        f"adapter, as `after = [...]` in [tuning.options]; the first suitable ones are {known[:4]}"
    )


def _told(model: ModelToTune, places: Mapping[str, _Place]) -> Targets:
    """Return the modules that get a bottleneck, with the rule that chose them."""
    family = model.loaded.family
    rule = f"the table of family {family.name}" if family.mlp else last_layers(model.loaded).rule
    modules = tuple(place.path for place in places.values())
    return Targets(modules, "named in tuning.options" if model.options["after"] else rule)


def _bottlenecks(model: ModelToTune, places: Mapping[str, _Place]) -> dict[str, Bottleneck]:
    """Make a bottleneck for each key; if shared, one for all places of a width.

    Raises:
      TuningError: if the user's own modules have several widths and shall share one.
    """
    widths = {key: place.width for key, place in places.items()}
    if not model.options["shared"]:
        return {key: _new(model, width) for key, width in widths.items()}
    if model.options["after"] and len(set(widths.values())) > 1:
        raise TuningError(
            f"tuning.method adapter: modules of widths {sorted(set(widths.values()))} cannot share "
            "one adapter; set `shared = false` or name modules of one width in `after`"
        )
    made = {width: _new(model, width) for width in dict.fromkeys(widths.values())}
    return {key: made[width] for key, width in widths.items()}


def _new(model: ModelToTune, width: int) -> Bottleneck:
    inner = max(1, width // cast(int, model.options["reduction"]))
    device = next(model.loaded.module.parameters()).device
    return Bottleneck(width, inner, zeros=model.options["init"] == "zeros", device=device)


def _place(model: ModelToTune, path: str) -> _Place:
    """Return a place with the size and axis of its features, from the config or its last layer."""
    loaded = model.loaded
    if loaded.family.mlp and not model.options["after"]:
        return _Place(path, hidden_size(loaded.module, loaded.family))
    for part in reversed(list(loaded.module.get_submodule(path).modules())):
        if width := _own_width(part):
            return _Place(path, width, 1 if isinstance(part, _ConvNd) else -1)
    raise TuningError(
        f"tuning.method adapter: the output width of module {path!r} is unknown: it has no linear "
        "layer, convolution or layer norm; name such a layer in `after`"
    )


def _own_width(part: nn.Module) -> int:
    if isinstance(part, nn.Linear):
        return part.out_features
    if isinstance(part, _ConvNd):
        return part.out_channels
    if isinstance(part, nn.LayerNorm):
        return part.normalized_shape[-1]
    return int(getattr(part, "nf", 0))  # the `Conv1D` of transformers
