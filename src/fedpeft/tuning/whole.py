"""Methods that train the model's own parameters: `scratch`, `full`, `head`.

    scratch   everything trains, from new weights; the head keeps its initialisation
    full      everything trains, from the pretrained weights
    head      the head trains on frozen features (a linear probe)

Reference: Sun et al., Exploring Parameter-Efficient Fine-Tuning to Enable Foundation Models in
Federated Learning, IEEE BigData 2024.
"""

from __future__ import annotations

import torch
from torch import nn

from fedpeft.core.errors import TuningError
from fedpeft.models.families import parameters_under
from fedpeft.models.loaded import LoadedModel
from fedpeft.models.pooling import pooling_of, set_pooling
from fedpeft.tuning.prepared import ModelToTune, PreparedModel, head_parameters, in_range, is_meta


def full(model: ModelToTune) -> PreparedModel:
    """Train everything; with a range of blocks, those blocks and the head."""
    module = model.loaded.module
    names = [name for name, _ in module.named_parameters()]
    if model.blocks is None:
        return PreparedModel(module, names, whole=True)
    chosen = {name for name in names if in_range(model, name)}
    return PreparedModel(module, chosen | head_parameters(model.loaded))


def scratch(model: ModelToTune) -> PreparedModel:
    """Train everything from new weights, which depend on the seed alone.

    The head of a classifier is kept, so that with one seed all methods start from the same head.

    Raises:
      TuningError: if a custom module cannot be initialised again, or blocks are given.
    """
    _refuse_blocks(model, "it trains the whole model")
    loaded = model.loaded
    module = loaded.module
    if not is_meta(module):
        kept = head_parameters(loaded) if loaded.task.new_head else frozenset[str]()
        module = _reinitialised(loaded, kept)
    return PreparedModel(module, [name for name, _ in module.named_parameters()], whole=True)


def head(model: ModelToTune) -> PreparedModel:
    """Train the head alone; that of a language model is first untied from the embeddings.

    Raises:
      TuningError: if the model has no known head, or blocks are given.
    """
    _refuse_blocks(model, "the head is in no block")
    loaded = model.loaded
    if not loaded.head and not loaded.fresh:
        raise TuningError(
            f"tuning.method head: {loaded.source} has no known head; "
            "name it when loading the model; its modules are "
            f"{[name for name, _ in loaded.module.named_children()][:6]}"
        )
    _untie(loaded)
    return PreparedModel(loaded.module, parameters_under(loaded.module, loaded.head) | loaded.fresh)


def _refuse_blocks(model: ModelToTune, why: str) -> None:
    if model.blocks is not None:
        raise TuningError(
            f"tuning.blocks {list(model.blocks)}: method {model.method} takes no range of "
            f"blocks: {why}; leave `blocks` out or choose full, bias, adapter, prompt or lora"
        )


def _reinitialised(loaded: LoadedModel, kept: frozenset[str]) -> nn.Module:
    """Return the same architecture with new weights, except for the parameters in `kept`."""
    old = {name: p.detach().clone() for name, p in loaded.module.named_parameters() if name in kept}
    config = getattr(loaded.module, "config", None)
    if config is not None and hasattr(loaded.module, "init_weights"):
        module = type(loaded.module)(config)
        set_pooling(module, pooling_of(loaded.module), loaded.task, where=loaded.source)
    else:
        module = loaded.module
        _reset(module)
    with torch.no_grad():
        for name, value in old.items():
            module.get_parameter(name).copy_(value)
    return module


def _reset(module: nn.Module) -> None:
    """Call each submodule's own initialisation, in the order of `named_modules`."""
    for path, part in module.named_modules():
        again = getattr(part, "reset_parameters", getattr(part, "_reset_parameters", None))
        if callable(again):
            again()
        elif any(True for _ in part.parameters(recurse=False)):
            raise TuningError(
                f"tuning.method scratch: module {path or 'the root'!r} ({type(part).__name__}) has "
                "parameters of its own but no `reset_parameters()`; give it that method, which "
                "initialises them again"
            )


def _untie(loaded: LoadedModel) -> None:
    """Copy the head's tensors that it shares with the frozen part of the model."""
    inside = parameters_under(loaded.module, loaded.head)
    every = dict(loaded.module.named_parameters(remove_duplicate=False))
    outside = {id(p) for name, p in every.items() if name not in inside}
    for path in (path for path in every if path in inside and id(every[path]) in outside):
        owner, _, name = path.rpartition(".")
        copied = nn.Parameter(every[path].detach().clone())
        setattr(loaded.module.get_submodule(owner), name, copied)
        _declare_untied(loaded.module)


def _declare_untied(module: nn.Module) -> None:
    """Mark the weights as untied for `transformers`, so that an export keeps both tensors."""
    config = getattr(module, "config", None)
    if config is not None:
        config.tie_word_embeddings = False
    if hasattr(module, "all_tied_weights_keys"):
        object.__setattr__(module, "all_tied_weights_keys", {})
