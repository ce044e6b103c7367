"""Import of a model that the user has already wrapped with `peft`.

    PeftModel ── its config ──> options of the method ─┐
        └────── a copy of its base ────────────────────┴─> apply_peft ── its values ──> TunedModel

The parameters that require gradients in the user's model are sent, under canonical names. Modules
in `modules_to_save` are trained in place, without the copy that `peft` makes of them.
"""

from __future__ import annotations

import copy
import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from fedpeft.core import seeds
from fedpeft.core.errors import TuningError
from fedpeft.models.loaded import LoadedModel
from fedpeft.models.source import ModelRequest, describe_module
from fedpeft.models.tasks import TASKS, Task
from fedpeft.tuning.dropout import DropoutKeys
from fedpeft.tuning.hf_peft import apply_peft, remove_copies
from fedpeft.tuning.methods import resolve_options
from fedpeft.tuning.peft_options import read_options
from fedpeft.tuning.peft_table import PROMPT_LEARNING
from fedpeft.tuning.prepared import ModelToTune, PreparedModel, finish
from fedpeft.tuning.tuned import TunedModel

if TYPE_CHECKING:
    from peft import PeftModel


def from_peft(model: nn.Module, *, task: Task | None = None, base: str | None = None) -> TunedModel:
    """Import a model that `peft.get_peft_model` has wrapped, with its config and its values.

    The model is copied and not changed. The copy is float32, on the CPU, in eval mode, with the
    dropout of the base model off; the dropout in the config is kept.

    Args:
      model: a `peft.PeftModel` with one adapter, which is not merged. What requires gradients in it
        is trained and sent.
      task: how a batch is scored; None infers it from the class of the base model, such as
        `...ForImageClassification`.
      base: hub id, folder or bundled name of the base model, by which a run folder is loaded again;
        None takes the name recorded in the model's own config.

    Raises:
      TuningError: if the model is not wrapped, has several adapters, merged or quantised weights,
        nothing that trains, or a type or field of the config that we do not offer (with the
        reason).
      ModelError: if the task cannot be inferred.

    Example:
      >>> import torch, peft, fedpeft
      >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
      >>> config = peft.LoraConfig(r=2, target_modules=["0"], modules_to_save=["2"])
      >>> task = fedpeft.classification_task(lambda net, batch: net(batch["inputs"]))
      >>> fedpeft.from_peft(peft.get_peft_model(net, config), task=task).spec.num_params
      42
    """
    wrapped = _checked(model)
    config = next(iter(wrapped.peft_config.values()))
    method = str(config.peft_type.value).lower()
    options = resolve_options(method, read_options(config))
    loaded = _describe(wrapped, method, task, base)
    seed = seeds.derive(0, "tuning")
    base_model = ModelToTune(loaded, method, options, None, seed, DropoutKeys())
    with seeds.isolated(seed):
        prepared = apply_peft(base_model)
    trained = _trained(wrapped, prepared)
    _copy_values(wrapped, prepared)
    tuned = finish(base_model, dataclasses.replace(prepared, trained=trained))
    return dataclasses.replace(tuned, unrecorded=_unrecorded(tuned, prepared, trained))


def _checked(model: nn.Module) -> PeftModel:
    """Return the model if it has exactly one trainable, unmerged adapter; raise otherwise."""
    from peft import PeftModel
    from peft.tuners.tuners_utils import BaseTunerLayer

    if not isinstance(model, PeftModel):
        raise TuningError(
            f"from_peft: found a {type(model).__name__}; allowed is what `peft.get_peft_model` "
            "returns (without mixed=True). Tune other models with `fedpeft.tune`"
        )
    if len(model.peft_config) != 1:
        raise TuningError(
            f"from_peft: found {len(model.peft_config)} adapters ({', '.join(model.peft_config)}); "
            "exactly one is allowed: remove the others with `model.delete_adapter(NAME)`"
        )
    if any(isinstance(part, BaseTunerLayer) and part.merged for part in model.modules()):
        raise TuningError("from_peft: the adapter is merged; call `model.unmerge_adapter()` first")
    if getattr(model.get_base_model(), "quantization_method", None) is not None:
        raise TuningError(
            "from_peft: the base is quantised, and clients train in float32; load it without "
            "quantization_config"
        )
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise TuningError(
            "from_peft: nothing requires gradients, so nothing would be sent; load a saved adapter "
            "with `PeftModel.from_pretrained(..., is_trainable=True)`"
        )
    return model


def _describe(wrapped: PeftModel, method: str, task: Task | None, base: str | None) -> LoadedModel:
    """Describe the base model without the library's layers; its head is `modules_to_save`."""
    config = next(iter(wrapped.peft_config.values()))
    saved = _saved_whole(wrapped)
    module = _base_of(wrapped, method)
    known = base or config.base_model_name_or_path or getattr(module, "name_or_path", "")
    labels = getattr(getattr(module, "config", None), "num_labels", None)
    request = ModelRequest(known or "", revision=config.revision)
    loaded = describe_module(module, request, task)
    recorded = dict(loaded.recorded)
    if recorded and loaded.task.name in TASKS:
        recorded["model.task"] = loaded.task.name
        if loaded.task.new_head and labels is not None:
            recorded["model.num_labels"] = labels
    return dataclasses.replace(loaded, head=saved, recorded=recorded)


def _saved_whole(wrapped: PeftModel) -> tuple[str, ...]:
    """Return the paths, in the base model, of the modules in `modules_to_save`."""
    from peft.utils.other import ModulesToSaveWrapper

    base = wrapped.get_base_model()
    owners = Counter(id(p) for _, p in base.named_parameters(remove_duplicate=False))
    saved = {path: p for path, p in base.named_modules() if isinstance(p, ModulesToSaveWrapper)}
    for path, part in saved.items():
        if any(owners[id(p)] > 1 for p in part.original_module.parameters()):
            raise TuningError(
                f"from_peft: modules_to_save has {path!r}, whose weight is shared with another "
                "part of the model; leave it out, or untie the weights"
            )
    return tuple(saved)


def _base_of(wrapped: PeftModel, method: str) -> nn.Module:
    """Copy the base model and remove the library's layers from the copy."""
    copied = copy.deepcopy(wrapped)
    remove_copies(copied)
    if method in PROMPT_LEARNING:
        return cast(nn.Module, copied.get_base_model())
    if not hasattr(copied.base_model, "unload"):
        raise TuningError(
            f"from_peft: the peft library cannot remove the layers of {method} from a model; pass "
            f'the model without them to `fedpeft.tune(..., TuningRequest("{method}"))`'
        )
    return cast(nn.Module, copied.base_model.unload())


def _trained(wrapped: PeftModel, prepared: PreparedModel) -> frozenset[str]:
    """Return the in-memory names, in our model, of what requires gradients in the user's."""
    ours = dict(_whole(prepared).named_parameters())
    paths = {id(parameter): path for path, parameter in prepared.module.named_parameters()}
    theirs = _by_our_paths(wrapped, wrapped.named_parameters())
    if lost := sorted(theirs.keys() ^ ours.keys()):
        raise TuningError(
            f"from_peft: the model is not what `get_peft_model` makes of its config: {lost[0]!r} "
            "exists in only one of them; pass the model as `get_peft_model` returned it"
        )
    return frozenset(paths[id(ours[name])] for name, p in theirs.items() if p.requires_grad)


def _copy_values(wrapped: PeftModel, prepared: PreparedModel) -> None:
    """Copy every parameter and buffer of the user's model into ours."""
    ours = _whole(prepared)
    live = {**dict(ours.named_parameters()), **dict(ours.named_buffers())}
    tensors = [*wrapped.named_parameters(), *wrapped.named_buffers()]
    with torch.no_grad():
        for name, tensor in _by_our_paths(wrapped, tensors).items():
            if live[name].shape != tensor.shape:
                raise TuningError(
                    f"from_peft: {name!r} has shape {tuple(tensor.shape)}; its config makes "
                    f"{tuple(live[name].shape)}"
                )
            live[name].copy_(tensor)
    for path, part in wrapped.named_modules():
        scaling = _scaling(part)
        if scaling and scaling != _scaling(ours.get_submodule(path)):
            raise TuningError(
                f"from_peft: {path!r} scales by {scaling[0]}, which differs from its config; "
                "set the scale in the config"
            )


def _scaling(part: nn.Module) -> list[float]:
    """Return the scaling factor of each adapter in a layer."""
    found = getattr(part, "scaling", None)
    return list(found.values()) if isinstance(found, dict) else []


def _by_our_paths(wrapped: PeftModel, named: Iterable[tuple[str, Tensor]]) -> Mapping[str, Tensor]:
    """Name tensors as in a wrapper with adapter name `default` and without copied modules."""
    adapter = next(iter(wrapped.peft_config))
    found = {}
    for path, tensor in named:
        if ".original_module." in path:
            continue
        ours = path.replace(f".modules_to_save.{adapter}.", ".")
        steps = ["default" if step == adapter else step for step in ours.split(".")]
        found[".".join(steps)] = tensor
    return found


def _whole(prepared: PreparedModel) -> nn.Module:
    assert prepared.peft_model is not None, "a method of peft"
    return prepared.peft_model


def _unrecorded(tuned: TunedModel, prepared: PreparedModel, trained: frozenset[str]) -> str:
    """Return why no experiment file can describe the model; empty if one can."""
    if not tuned.loaded.recorded:
        return "its base has no name to load it by: pass base= to from_peft, a hub id or a folder"
    if TASKS.get(tuned.loaded.task.name) is not tuned.loaded.task:
        return f"its task {tuned.loaded.task.name!r} is an object from Python"
    for name in sorted(frozenset(prepared.trained) ^ trained):
        return (
            f"{name!r} trains, which is no option of the method"
            if name in trained
            else f"{name!r} does not require gradients; the method trains it"
        )
    return ""
