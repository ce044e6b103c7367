"""The layers that a `peft` type adapts where the user names none.

    1. our own table of families          query, value of BERT
    2. the library's table of types       q_proj, v_proj of OPT
    3. every linear layer outside the head (norms for LN tuning); in a backbone whose blocks are
       convolutions, every convolution with one group as well

The head is never a target: it trains anyway. Nor is a layer that shares its weight with another.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import nn
from torch.nn.modules.conv import _ConvNd

from fedpeft.models.loaded import LoadedModel
from fedpeft.tuning.peft_table import default_targets

ALL_LINEAR = "all-linear"
"""The value of `target_modules` that means every linear layer outside the head."""

ALL_LINEAR_RULE = "every linear layer outside the head"

CLASSIFIERS = ("classifier", "score")
"""Ends of the names of modules that the library always trains as a text classifier's head."""

_FORWARDS = (nn.Conv1d.forward, nn.Conv2d.forward, nn.Conv3d.forward)

_MAMBA = frozenset({"falcon_h1", "falcon_mamba", "mamba", "mamba2", "nemotron_h"})
_FUSED = ("conv1d", "dt_proj", "out_proj", "x_proj")
"""Layers of Mamba models whose weights a fused kernel reads, past whatever was put around them."""


@dataclass(frozen=True)
class Targets:
    """The layers that are adapted, and why these.

    Attributes:
      modules: suffixes of module paths, or a regular expression of whole paths.
      rule: the rule that chose them, in words.
      feedforward: those whose input IA3 scales, instead of the output.
      chosen: whether they were chosen by looking at the model or the library, so that a record
        must hold them.
    """

    modules: tuple[str, ...] | str
    rule: str
    feedforward: tuple[str, ...] = ()
    chosen: bool = False

    def as_json(self) -> dict[str, object]:
        """Return the layers and the rule, for plans and records."""
        modules = self.modules if isinstance(self.modules, str) else list(self.modules)
        return {"modules": modules, "rule": self.rule}


def find_targets(loaded: LoadedModel, name: str, given: object) -> Targets:
    """Return the layers that a type adapts.

    Args:
      loaded: the model.
      name: the type, in lower case.
      given: the user's `target_modules`: a list of suffixes, a regular expression, `all-linear`, or
        None.

    Returns:
      the targets; without modules where no rule finds any.
    """
    family = loaded.family
    if isinstance(given, str) and given.lower() == ALL_LINEAR:
        return _exactly(loaded, _linear(loaded), family.feedforward, ALL_LINEAR_RULE)
    if isinstance(given, str):
        return Targets(given, "named in tuning.options", family.feedforward)
    modules = tuple(given) if isinstance(given, Collection) else ()
    rule = "named in tuning.options"
    if not modules:
        modules, rule = default_targets(name, family.targets), f"the table of family {family.name}"
    if modules:
        inner = tuple(path for path in modules if path in family.feedforward)
        return Targets(modules, rule, inner)
    return _of_library(loaded, name) or _of_modules(loaded, name)


def layer_names(loaded: LoadedModel) -> list[str]:
    """Return the paths of all layers that may be named as targets, for error messages."""
    return _linear(loaded) or _convolutions(loaded)


def last_layers(loaded: LoadedModel) -> Targets:
    """Return the last linear layer of each block, or the last convolution where none has one.

    A block of a Mamba has its mixer instead, whose layers a fused kernel may pass by.

    Blocks are the items of the innermost `ModuleList`s outside the head: those of a transformer,
    the stages of a ResNet. The last layer is the output of the MLP in all usual architectures.
    """
    if _is_mamba(loaded):
        mixers = [p for p, _ in loaded.module.named_modules() if p.endswith(".mixer")]
        return Targets(tuple(mixers), "the mixer of each block")
    convolutions = [p for p, part in _layers(loaded) if _is_convolution(part)]
    for layers, kind in ((_linear(loaded), "linear layer"), (convolutions, "convolution")):
        last = _in_blocks(loaded, layers)
        paths = [p for b, p in last.items() if not any(o.startswith(f"{b}.") for o in last)]
        if paths:
            return Targets(tuple(paths), f"the last {kind} of each block")
    return Targets((), "")


def block_paths(loaded: LoadedModel) -> list[str]:
    """Return the paths of a transformer's blocks: the items of the one list with linear layers.

    A model with several such lists (the stages of a pyramid) has none.
    """
    found = list(_in_blocks(loaded, _linear(loaded)))
    lists = {path.rpartition(".")[0] for path in found}
    return found if len(lists) == 1 else []


def _in_blocks(loaded: LoadedModel, layers: Sequence[str]) -> dict[str, str]:
    """Map each block to the last of the layers inside it; embeddings are no blocks."""
    parts = loaded.module.named_modules()
    lists = [p for p, part in parts if isinstance(part, nn.ModuleList) and "embed" not in p]
    found = {_block_around(path, lists): path for path in layers}
    return {block: path for block, path in found.items() if block}


def _block_around(path: str, lists: Sequence[str]) -> str:
    """Return the path of the innermost item of a list that a layer lies in; empty if in none."""
    around = [each for each in lists if path.startswith(f"{each}.")]
    if not around:
        return ""
    inner = max(around, key=len)
    number, _, _ = path.removeprefix(f"{inner}.").partition(".")
    return f"{inner}.{number}"


def _of_library(loaded: LoadedModel, name: str) -> Targets | None:
    """Return the library's targets for a model type, as far as they lie outside the head."""
    from peft.utils import constants

    model_type = str(getattr(getattr(loaded.module, "config", None), "model_type", ""))
    found = _mapping(name).get(model_type)
    if found is None:
        return None
    rule = f"the peft library's table for model type {model_type!r}"
    if isinstance(found, str):
        return Targets(found, rule, chosen=True)
    assert isinstance(found, Collection), "the library has lists and regular expressions"
    inner: Sequence[str] = ()
    if name == "ia3":
        inner = constants.TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING.get(model_type, ())
    matched = {path for path in _paths(loaded) if _matches(path, found)}
    free = [path for path in _free(loaded) if path in matched]
    if len(free) < len(matched):  # some lie in the head
        return _chosen(_exactly(loaded, free, inner, rule)) if free else None
    return Targets(tuple(found), rule, tuple(inner), chosen=True) if free else None


def _mapping(name: str) -> Mapping[str, object]:
    from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
    from peft.utils import PeftType, constants

    if name == "ia3":
        found: Mapping[str, object] = constants.TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING
        return found
    tuner = PEFT_TYPE_TO_TUNER_MAPPING.get(PeftType(name.upper()))
    return getattr(tuner, "target_module_mapping", None) or {}


def _of_modules(loaded: LoadedModel, name: str) -> Targets:
    """Return targets by the kinds of a model's layers."""
    if name == "ln_tuning":
        norms = [path for path in _free(loaded) if _is_norm(loaded.module.get_submodule(path))]
        return _chosen(_exactly(loaded, norms, (), "every norm outside the head"))
    paths, rule = _linear(loaded), ALL_LINEAR_RULE
    if not any(re.search(r"\.\d+\.", path) for path in paths):
        convolutions = _convolutions(loaded)
        if convolutions:
            both = "every linear layer and every" if paths else "every"
            rule = f"{both} convolution with one group outside the head"
        paths = [*paths, *convolutions]
    return _chosen(_exactly(loaded, paths, (), rule))


def _chosen(targets: Targets) -> Targets:
    return replace(targets, chosen=True)


def _linear(loaded: LoadedModel) -> list[str]:
    from transformers.pytorch_utils import Conv1D

    return [path for path, part in _layers(loaded) if isinstance(part, nn.Linear | Conv1D)]


def _convolutions(loaded: LoadedModel) -> list[str]:
    """Return the convolutions with one group.

    A class with a `forward` of its own (one that standardises its weight) is none: once a low-rank
    change was merged, it would be standardised too.
    """
    parts = _layers(loaded)
    return [p for p, part in parts if _is_convolution(part) and type(part).forward in _FORWARDS]


def _is_convolution(part: nn.Module) -> bool:
    return isinstance(part, _ConvNd) and part.groups == 1


def _layers(loaded: LoadedModel) -> Iterator[tuple[str, nn.Module]]:
    """Yield the layers outside the head that may be wrapped, with their paths."""
    for path in _free(loaded):
        owner, _, last = path.rpartition(".")
        fused = last in _FUSED and _is_mamba(loaded)
        if not fused and not isinstance(loaded.module.get_submodule(owner), nn.MultiheadAttention):
            yield path, loaded.module.get_submodule(path)


def _is_mamba(loaded: LoadedModel) -> bool:
    return getattr(getattr(loaded.module, "config", None), "model_type", "") in _MAMBA


def _paths(loaded: LoadedModel) -> list[str]:
    return [path for path, _ in loaded.module.named_modules() if path]


def _free(loaded: LoadedModel) -> list[str]:
    """Return the paths of the modules outside the head that share no weight with another."""
    paths = _paths(loaded)
    heads = {*loaded.head, *(name.rpartition(".")[0] for name in loaded.fresh)}
    if loaded.task.new_head and loaded.task.inputs == "text":
        heads |= {path for path in paths if path.endswith(CLASSIFIERS)}
    inside = tuple(f"{path}." for path in heads)
    tied = set(tied_modules(loaded.module))
    return [path for path in paths if not f"{path}.".startswith(inside) and path not in tied]


def _is_norm(part: nn.Module) -> bool:
    """Whether a module is a normalisation with a gain: its class says so, in every library."""
    gain = getattr(part, "weight", None)
    named = re.search("norm", type(part).__name__, re.IGNORECASE) is not None
    return named and isinstance(gain, nn.Parameter) and gain.dim() == 1


def _matches(path: str, suffixes: Collection[object]) -> bool:
    return f".{path}".endswith(tuple(f".{each}" for each in suffixes))


def _exactly(
    loaded: LoadedModel, paths: Sequence[str], feedforward: Collection[str], rule: str
) -> Targets:
    """Return targets that match these paths and nothing else."""
    inner = [path for path in paths if _matches(path, feedforward)]
    others = _suffixes(loaded, [path for path in paths if path not in inner])
    ends = _suffixes(loaded, inner)
    matched = {path for path in _paths(loaded) if _matches(path, (*others, *ends))}
    if matched == set(paths):
        return Targets((*others, *ends), rule, ends)
    return Targets("|".join(map(re.escape, paths)), rule, ends)


def _suffixes(loaded: LoadedModel, paths: Sequence[str]) -> tuple[str, ...]:
    """Return few short suffixes that match the paths, and no other module if that is possible."""
    others = set(_paths(loaded)) - set(paths)
    found: dict[str, None] = {}
    for path in paths:
        steps = path.split(".")
        ends = (".".join(steps[-size:]) for size in range(1, len(steps) + 1))
        short = next((end for end in ends if not any(_matches(o, [end]) for o in others)), path)
        found.setdefault(short)
    return tuple(found)


def tied_modules(module: nn.Module) -> dict[str, str]:
    """Map each module whose weight is also another module's to the first of those others."""
    owners: dict[nn.Parameter, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        owners.setdefault(parameter, []).append(name.rpartition(".")[0])
    return {
        path: next(other for other in paths if other != path)
        for paths in owners.values()
        for path in paths
        if len(set(paths)) > 1
    }
