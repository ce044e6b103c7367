"""The methods of the `peft` library: its layers in the model, under the rules of this package.

    targets ──> peft inserts its layers ──> then: the head trains too, dropout masks follow from
                                            example keys, frozen weights are checked to be
                                            unchanged, wire names drop the library's paths

The delta is what requires gradients, never `peft`'s own state dict, which can hold frozen
projections. Random parts of a method come from the seed of the model to tune.

Reference: Mangrulkar et al., PEFT: State-of-the-art Parameter-Efficient Fine-Tuning methods, 2022.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import json
import re
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from fedpeft.core import seeds
from fedpeft.core.errors import TuningError
from fedpeft.core.text import plain
from fedpeft.models.families import hidden_size
from fedpeft.models.loaded import LoadedModel
from fedpeft.models.pooling import leave_out_prompt
from fedpeft.models.tasks import blank_labels
from fedpeft.tuning.dropout import KeyedDropout
from fedpeft.tuning.peft_names import PeftNames
from fedpeft.tuning.peft_options import config_class
from fedpeft.tuning.peft_table import (
    KEY_VALUE,
    PROMPT_LEARNING,
    SEED_FIELDS,
    WITHOUT_TARGETS,
    short_form,
    verdict,
)
from fedpeft.tuning.prepared import (
    ModelToTune,
    PreparedModel,
    chosen_blocks,
    head_parameters,
    in_range,
    is_meta,
)
from fedpeft.tuning.targets import Targets, find_targets, layer_names, tied_modules

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedConfig


_NEED_VALUES = frozenset(("boft", "unilora"))
"""Types that compute with the values of their new tensors while they are made."""

_FEW = 10
"""Largest number of targets, of which none is a layer, that the library names in its message."""


def apply_peft(model: ModelToTune) -> PreparedModel:
    """Insert the layers of a `peft` type into the model, and train them and the head.

    Raises:
      TuningError: if the type does not work on this kind of model (with the reason), finds no
        layer, refuses its options, or changed a frozen weight.
    """
    name, _ = short_form(model.method)
    if reason := verdict(name, model.loaded):
        raise _error(model, f"not supported for this kind of model: {reason}")
    module = model.loaded.module
    prompted = name in PROMPT_LEARNING
    names = PeftNames(
        model.loaded,
        modules=frozenset(path for path, _ in module.named_modules() if path),
        parameters=frozenset(path for path, _ in module.named_parameters()),
        prefix="base_model." if prompted else "",
    )
    head = head_parameters(model.loaded)
    before, tied = _fingerprint(module), tied_modules(module)
    found = _targets_of(model, name)
    wrapper = _wrap(model, name, found)
    changed: nn.Module = wrapper if prompted else wrapper.get_base_model()
    _check_frozen(model, changed, before)
    _key_dropouts(model, changed, names)
    if prompted and name not in KEY_VALUE:
        num_tokens = cast(int, model.options["num_virtual_tokens"])
        leave_out_prompt(module, num_tokens)
        if model.loaded.task.targets in ("tags", "tokens"):
            changed.register_forward_hook(partial(_cut_virtual_tokens, num_tokens))
    if prompted and not model.loaded.family.block:
        _try_once(model, changed)
    added = {path for path, p in changed.named_parameters() if p.requires_grad}
    new = {names.place(p) for p in added if names.original(p) not in names.parameters}
    _check_overlap(model, new, head)
    if name != "trainable_tokens":  # the library knows how to keep these tied
        _check_tied(model, new, tied)
    return PreparedModel(
        changed,
        added | {path for path, _ in changed.named_parameters() if names.original(path) in head},
        rename=names.wire,
        peft_model=wrapper,
        drawn={**_drawn(model, name), **_recorded(found, name)},
        targets=found,
    )


def _cut_virtual_tokens(
    num_tokens: int, module: nn.Module, inputs: object, output: dict[str, Tensor]
) -> object:
    """A forward hook: remove the logits of the virtual tokens."""
    output["logits"] = output["logits"][:, num_tokens:]
    return output


def _try_once(model: ModelToTune, changed: nn.Module) -> None:
    """Run two tokens through a model of no known family, which may not take virtual tokens.

    Raises:
      TuningError: if the library fails; on `meta` tensors nothing is tried.
    """
    if is_meta(changed):
        return
    tokens = torch.ones((1, 2), dtype=torch.long, device=next(changed.parameters()).device)
    outputs = int(getattr(getattr(changed, "config", None), "num_labels", 1))
    labels = blank_labels(model.loaded.task, tokens, outputs)
    batch = {"input_ids": tokens, "attention_mask": tokens, "labels": labels}
    try:
        with torch.no_grad():
            model.loaded.task.score(changed.eval(), batch)
    except (RuntimeError, TypeError, ValueError, AttributeError, LookupError) as error:
        other = "prompt_tuning" if short_form(model.method)[0] in KEY_VALUE else "another method"
        raise _error(
            model,
            f"this kind of model cannot be run with virtual tokens ({plain(error, 80)}); "
            f"choose {other}",
        ) from error


def _wrap(model: ModelToTune, name: str, found: Targets | None) -> PeftModel:
    """Apply the library's own `get_peft_model`, then remove its copies of the head."""
    from peft import get_peft_model

    module = model.loaded.module
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            config = config_class(name)(**_fields(model, name, found))
            sketch = is_meta(module)
            with _on_meta() if sketch and name not in _NEED_VALUES else contextlib.nullcontext():
                wrapper: PeftModel = get_peft_model(module, config, low_cpu_mem_usage=sketch)
    except (ValueError, TypeError, KeyError, AttributeError, NotImplementedError) as error:
        raise _error(
            model, f"the peft library reports: {plain(error)}{_hint(model, error)}"
        ) from error
    remove_copies(wrapper)
    _keep_sizes(wrapper)
    return wrapper


def _on_meta() -> contextlib.AbstractContextManager[object]:
    """Make tensors on `meta`; else the library takes memory for each, and then gives it back."""
    return torch.device("meta")


def _keep_sizes(wrapper: nn.Module) -> None:
    """Repeat a convolution's sizes on the layer around it: some models read them (MobileNet)."""
    for part in wrapper.modules():
        inner = getattr(part, "base_layer", None)
        if isinstance(inner, _ConvNd):
            for name in ("stride", "padding", "dilation", "kernel_size", "groups"):
                if not hasattr(part, name):
                    setattr(part, name, getattr(inner, name))


def _fields(model: ModelToTune, name: str, found: Targets | None) -> dict[str, object]:
    """Return the library's config fields: options, and values set by model, blocks and seed."""
    fields = {**_drawn(model, name), **model.options}
    if found is not None:
        return {**fields, **_targets(model, name, found)}
    if model.blocks is not None:
        raise _error(model, "it takes no range of blocks; leave `blocks` out")
    if name == "adaption_prompt":
        return {"adapter_layers": len(chosen_blocks(model)), **fields}
    return {**fields, **_prompt_fields(model)} if name in PROMPT_LEARNING else fields


def _drawn(model: ModelToTune, name: str) -> dict[str, object]:
    """Return the seeds of a type's frozen random parts that the options do not set."""
    fields = {field.name for field in dataclasses.fields(config_class(name))}
    missing = SEED_FIELDS & fields - model.options.keys()
    return {key: seeds.derive(model.seed, key) % 2**31 for key in sorted(missing)}


def _prompt_fields(model: ModelToTune) -> dict[str, object]:
    """Return the config fields of prompt learning that `peft` infers for few families only."""
    loaded = model.loaded
    name, _ = short_form(model.method)
    if name not in KEY_VALUE and "score" in loaded.head:
        raise _error(
            model,
            "this classifier finds the end of a text by its padding tokens, which a prompt hides; "
            "choose prefix_tuning",
        )
    backbone = cast(nn.Module, getattr(loaded.module, "base_model", loaded.module))
    takes_cache = "past_key_values" in inspect.signature(backbone.forward).parameters
    if name in KEY_VALUE and not takes_cache:
        raise _error(model, "this model takes no key-value cache; choose prompt_tuning")
    return {
        "task_type": loaded.task.peft_type,
        **_widths(loaded, name),
    }


def _widths(loaded: LoadedModel, name: str) -> dict[str, object]:
    """Return the width of a virtual token, and the heads that its keys and values have."""
    module = loaded.module
    config = cast("PreTrainedConfig", module.config)
    heads: int | None = getattr(config, "num_attention_heads", None)
    embedding = getattr(module, "get_input_embeddings", lambda: None)()
    if name not in KEY_VALUE and isinstance(embedding, nn.Embedding):
        return {"token_dim": embedding.embedding_dim, "num_attention_heads": heads}
    width = hidden_size(module, loaded.family)
    if heads and config.model_type == "falcon":  # the library knows others that share heads
        shared = config.multi_query and not config.new_decoder_architecture
        kept = 1 if shared else config.num_kv_heads
        width, heads = width // heads * kept, kept
    return {"token_dim": width, "num_attention_heads": heads}


def _targets_of(model: ModelToTune, name: str) -> Targets | None:
    """Return the layers that a type adapts; None for types that adapt no chosen layers.

    Raises:
      TuningError: if the user named none, and no rule finds any.
    """
    if name in PROMPT_LEARNING | WITHOUT_TARGETS:
        return None
    found = find_targets(model.loaded, name, model.options.get("target_modules"))
    if not found.modules:
        raise _error(model, _no_targets(name))
    return found


def _targets(model: ModelToTune, name: str, found: Targets) -> dict[str, object]:
    """Return the config fields of the layers that are adapted, within the range of blocks."""
    modules = found.modules if isinstance(found.modules, str) else _present(model, found.modules)
    fields: dict[str, object] = {"target_modules": modules}
    if name == "ia3" and "feedforward_modules" not in model.options:
        fields["feedforward_modules"] = list(found.feedforward)
    if model.blocks is not None:
        fields["target_modules"] = _only_in_blocks(model, modules)
    return fields


def _present(model: ModelToTune, names: Sequence[str]) -> list[str]:
    """Drop names that no layer has: the library compares every two names. All, if none is left."""
    paths = [path.split(".") for path, _ in model.loaded.module.named_modules()]
    ends = {".".join(path[start:]) for path in paths for start in range(len(path))}
    return [name for name in names if name in ends] or list(names[:_FEW])


def _recorded(found: Targets | None, name: str) -> dict[str, object]:
    """Return as options what was chosen by looking at the model, or at a table of the library."""
    if found is None or not found.chosen:
        return {}
    modules = found.modules if isinstance(found.modules, str) else list(found.modules)
    inner = {"feedforward_modules": list(found.feedforward)} if name == "ia3" else {}
    return {"target_modules": modules, **inner}


def _only_in_blocks(model: ModelToTune, targets: object) -> str:
    """Return a regular expression of the targeted modules inside the range of blocks."""
    module = model.loaded.module
    paths = [path for path, _ in module.named_modules() if path and in_range(model, path)]
    if isinstance(targets, str):
        found = [path for path in paths if re.fullmatch(targets, path)]
    else:
        suffixes = tuple(f".{suffix}" for suffix in cast("list[object]", targets))
        found = [path for path in paths if f".{path}".endswith(suffixes)]
    if not found:
        raise _error(model, f"target_modules {targets!r} match nothing in the range of blocks")
    return "|".join(re.escape(path) for path in found)


def remove_copies(wrapper: nn.Module) -> None:
    """Undo `modules_to_save`: `peft` trains a copy of a classifier's head; we train the head."""
    from peft.utils.other import ModulesToSaveWrapper

    for path, part in list(wrapper.named_modules()):
        if isinstance(part, ModulesToSaveWrapper):
            parent, _, name = path.rpartition(".")
            setattr(wrapper.get_submodule(parent), name, part.original_module)


def _fingerprint(module: nn.Module) -> Mapping[str, tuple[nn.Parameter, Tensor]]:
    """Return each parameter with its sum."""
    return {n: (p, p.detach().double().sum()) for n, p in module.named_parameters()}


def _check_frozen(
    model: ModelToTune, changed: nn.Module, before: Mapping[str, tuple[nn.Parameter, Tensor]]
) -> None:
    """Raise if the backbone was changed: it would no longer be the model that was loaded."""
    live = {id(parameter) for parameter in changed.parameters()}
    for name, (parameter, total) in before.items():
        same = parameter.is_meta or bool(parameter.detach().double().sum() == total)
        if id(parameter) not in live or not same:
            raise _error(
                model, f"it changed the frozen parameter {name!r}; choose another initialisation"
            )


def _check_overlap(model: ModelToTune, places: set[str], head: frozenset[str]) -> None:
    """Raise if a target lies inside the head, which is trained anyway."""
    inside = sorted(place for place in places if any(n.startswith(f"{place}.") for n in head))
    if inside:
        parts = "a part" if len(inside) == 1 else "parts"
        raise _error(
            model,
            f"target_modules match {', '.join(map(repr, inside))}, {parts} of the head, which "
            f"trains anyway; name other layers or set `exclude_modules = {json.dumps(inside)}`",
        )


def _check_tied(model: ModelToTune, places: set[str], tied: Mapping[str, str]) -> None:
    """Raise if a target shares its weight: merged, the change would reach the other module too."""
    shared = sorted(places & tied.keys())
    if shared:
        raise _error(
            model,
            f"target_modules match {shared[0]!r}, whose weight is also that of "
            f"{tied[shared[0]]!r}; once merged the change would reach both: name other layers, or "
            "take a model without tied weights (tie_word_embeddings = false)",
        )


def _key_dropouts(model: ModelToTune, changed: nn.Module, names: PeftNames) -> None:
    """Replace the library's dropout layers by ours, whose masks do not depend on the batch."""
    requested = {k: v for k, v in model.options.items() if k.endswith("dropout") and v}
    replaced = 0
    for path, part in list(changed.named_modules()):
        if isinstance(part, nn.Dropout) and path.removeprefix(names.prefix) not in names.modules:
            parent, _, name = path.rpartition(".")
            keyed = KeyedDropout(part.p, model.keys, names.wire(path))
            setattr(changed.get_submodule(parent), name, keyed)
            replaced += part.p > 0
    if requested and not replaced:
        key, value = next(iter(requested.items()))
        raise _error(
            model,
            f"{key} = {value!r}: this dropout draws from a global generator inside the library, so "
            "results would depend on how batches are laid out; set it to 0",
        )


def _no_targets(name: str) -> str:
    """Say that no rule found a layer to adapt."""
    if name == "ln_tuning":
        return "the model has no normalisation with a gain outside its head; choose head or bias"
    return (
        "outside its head the model has no linear layer and no convolution with one group of "
        "torch's own classes; choose head, bias or full"
    )


def _hint(model: ModelToTune, error: Exception) -> str:
    """Name layers that can be targets, where the library found none."""
    names = layer_names(model.loaded)
    if "target" not in str(error).lower() or not names:
        return ""
    return f"; the first layers that can be named are {', '.join(names[:4])}"


def _error(model: ModelToTune, what: str) -> TuningError:
    loaded = model.loaded
    return TuningError(
        f"tuning.method {model.method} on {loaded.source} (family {loaded.family.name}): {what}"
    )
