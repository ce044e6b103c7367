"""The methods of the `peft` library: its own layers in the model, our rules around them.

    targets ──> peft puts its layers in ──> ours: the head trains too, dropout by example key,
                                            frozen weights as they were, wire names without
                                            the library's paths

The delta is what requires gradients, never `peft`'s own state dict, which can hold frozen
projections. What a method draws at random comes from the seed of the surgery.

Reference: Mangrulkar et al., PEFT: State-of-the-art Parameter-Efficient Fine-Tuning methods, 2022.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import warnings
from collections.abc import Mapping
from typing import Protocol, cast

from torch import Tensor, nn

from fedpeft.core import seeds
from fedpeft.core.errors import TuningError
from fedpeft.models.families import hidden_size
from fedpeft.tuning.dropout import KeyedDropout
from fedpeft.tuning.peft_names import PeftNames
from fedpeft.tuning.peft_options import config_class
from fedpeft.tuning.peft_table import (
    KEY_VALUE,
    PROMPT_LEARNING,
    SEED_FIELDS,
    default_targets,
    short_form,
    verdict,
)
from fedpeft.tuning.surgery import (
    Patient,
    Surgery,
    chosen_blocks,
    head_parameters,
    in_range,
    is_meta,
)

__all__ = ["apply_peft", "take_out_copies"]


class _Wrapper(Protocol):
    """The part of `peft.PeftModel` that we use."""

    def get_base_model(self) -> nn.Module: ...


def apply_peft(patient: Patient) -> Surgery:
    """Put a `peft` type's layers into the model, and train them and the head.

    Raises:
      TuningError: if the type does not work on this kind of model (with the reason), finds no
        layer, refuses its options, or changed a frozen weight.
    """
    name, _ = short_form(patient.method)
    if reason := verdict(name, patient.loaded):
        raise _error(patient, f"not offered for this kind of model: {reason}")
    module = patient.loaded.module
    prompted = name in PROMPT_LEARNING
    names = PeftNames(
        patient.loaded,
        modules=frozenset(path for path, _ in module.named_modules() if path),
        parameters=frozenset(path for path, _ in module.named_parameters()),
        prefix="base_model." if prompted else "",
    )
    head = head_parameters(patient.loaded)
    before = _fingerprint(module)
    wrapper = _wrap(patient, name)
    model = cast(nn.Module, wrapper) if prompted else wrapper.get_base_model()
    _check_frozen(patient, model, before)
    _key_dropouts(patient, model, names)
    if prompted and name not in KEY_VALUE:
        _cut_virtual_tokens(patient, model)
    added = {path for path, p in model.named_parameters() if p.requires_grad}
    new = {path for path in added if names.original(path) not in names.parameters}
    _check_overlap(patient, {names.place(path) for path in new}, head)
    return Surgery(
        model,
        added | {path for path, _ in model.named_parameters() if names.original(path) in head},
        rename=names.wire,
        peft_model=cast(nn.Module, wrapper),
        drawn=_drawn(patient, name),
    )


class _CutVirtualTokens:
    """A forward hook that can be pickled: keeps the logits of the text, without the prompt's."""

    def __init__(self, num_tokens: int) -> None:
        self.num_tokens = num_tokens

    def __call__(self, module: nn.Module, inputs: object, output: dict[str, Tensor]) -> object:
        output["logits"] = output["logits"][:, self.num_tokens :]
        return output


def _wrap(patient: Patient, name: str) -> _Wrapper:
    """Let the library change the model, and take its copies of the head out again."""
    from peft import get_peft_model

    module = patient.loaded.module
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            config = config_class(name)(**_fields(patient, name))
            wrapper = get_peft_model(module, config, low_cpu_mem_usage=is_meta(module))
    except (ValueError, TypeError, KeyError, AttributeError, NotImplementedError) as error:
        raise _error(patient, f"the peft library says: {error}") from error
    take_out_copies(wrapper)
    return cast(_Wrapper, wrapper)


def _fields(patient: Patient, name: str) -> dict[str, object]:
    """The library's config fields: the options, and what follows from model, range and seed."""
    known = {field.name for field in dataclasses.fields(config_class(name))}
    fields = {**_drawn(patient, name), **patient.options}
    if name not in PROMPT_LEARNING | {"adaption_prompt", "trainable_tokens"}:
        return {**fields, **_targets(patient, name, known)}
    if patient.blocks is not None:
        raise _error(patient, "it takes no range of blocks; leave `blocks` out")
    if name == "adaption_prompt":
        return {"adapter_layers": len(chosen_blocks(patient)), **fields}
    return {**fields, **_prompt_fields(patient)} if name in PROMPT_LEARNING else fields


def _drawn(patient: Patient, name: str) -> dict[str, object]:
    """Seeds of a type's frozen random parts, where the options do not set them."""
    fields = {field.name for field in dataclasses.fields(config_class(name))}
    missing = SEED_FIELDS & fields - patient.options.keys()
    return {key: seeds.derive(patient.seed, key) % 2**31 for key in sorted(missing)}


def _prompt_fields(patient: Patient) -> dict[str, object]:
    """What prompt learning must know of the model; the library reads it for some families only."""
    loaded = patient.loaded
    name, _ = short_form(patient.method)
    if name not in KEY_VALUE and "score" in loaded.head:
        raise _error(
            patient,
            "this classifier finds the end of a text by its padding tokens, which a prompt hides; "
            "choose prefix_tuning",
        )
    backbone = cast(nn.Module, getattr(loaded.module, "base_model", loaded.module))
    takes_cache = "past_key_values" in inspect.signature(backbone.forward).parameters
    if name in KEY_VALUE and not takes_cache:
        raise _error(patient, "this model takes no key-value cache; choose prompt_tuning")
    return {
        "task_type": loaded.task.peft_type,
        "token_dim": hidden_size(loaded.module, loaded.family),
        "num_attention_heads": getattr(loaded.module.config, "num_attention_heads", None),
    }


def _targets(patient: Patient, name: str, known: set[str]) -> dict[str, object]:
    """Where the layers go: the user's targets or the family's, inside the range of blocks."""
    family = patient.loaded.family
    wanted = patient.options.get("target_modules") or list(default_targets(name, family.targets))
    if not wanted:
        raise _error(patient, f"no default targets; {_first_layers(patient)}")
    fields: dict[str, object] = {"target_modules": wanted}
    if name == "ia3" and "feedforward_modules" not in patient.options:
        given = wanted if isinstance(wanted, list) else list(family.feedforward)
        fields["feedforward_modules"] = [path for path in given if path in family.feedforward]
    if wanted == "all-linear" and "exclude_modules" in known:
        fields["exclude_modules"] = patient.options.get("exclude_modules") or list(
            patient.loaded.head
        )
    if patient.blocks is not None:
        fields["target_modules"] = _only_in_blocks(patient, wanted)
    return fields


def _only_in_blocks(patient: Patient, wanted: object) -> str:
    """Return a regular expression of the targeted modules inside the range of blocks."""
    module = patient.loaded.module
    paths = [path for path, _ in module.named_modules() if path and in_range(patient, path)]
    if wanted == "all-linear":
        linear = [p for p in paths if isinstance(module.get_submodule(p), nn.Linear)]
        return "|".join(re.escape(path) for path in linear)
    if isinstance(wanted, str):
        found = [path for path in paths if re.fullmatch(wanted, path)]
    else:
        suffixes = [str(suffix) for suffix in cast("list[object]", wanted)]
        found = [p for p in paths if any(p == s or p.endswith(f".{s}") for s in suffixes)]
    if not found:
        raise _error(patient, f"target_modules {wanted!r} match nothing in the range of blocks")
    return "|".join(re.escape(path) for path in found)


def take_out_copies(wrapper: nn.Module) -> None:
    """Undo `modules_to_save`: the library copies a classifier's head; we train the head itself."""
    from peft.utils.other import ModulesToSaveWrapper

    for path, part in list(wrapper.named_modules()):
        if isinstance(part, ModulesToSaveWrapper):
            parent, _, name = path.rpartition(".")
            setattr(wrapper.get_submodule(parent), name, part.original_module)


def _fingerprint(module: nn.Module) -> Mapping[str, tuple[nn.Parameter, Tensor]]:
    """Each parameter and its sum."""
    return {n: (p, p.detach().double().sum()) for n, p in module.named_parameters()}


def _check_frozen(
    patient: Patient, model: nn.Module, before: Mapping[str, tuple[nn.Parameter, Tensor]]
) -> None:
    """Refuse a change of the backbone: its fingerprint would no longer be that of its weights."""
    live = {id(parameter) for parameter in model.parameters()}
    for name, (parameter, total) in before.items():
        same = parameter.is_meta or bool(parameter.detach().double().sum() == total)
        if id(parameter) not in live or not same:
            raise _error(
                patient, f"it changed the frozen parameter {name!r}; choose another initialisation"
            )


def _check_overlap(patient: Patient, places: set[str], head: frozenset[str]) -> None:
    """Refuse targets inside the head, which trains as it is."""
    inside = sorted(place for place in places if any(n.startswith(f"{place}.") for n in head))
    if inside:
        raise _error(
            patient,
            f"target_modules match {inside[0]!r}, a part of the head, which trains anyway; "
            "name other layers or list it in exclude_modules",
        )


def _key_dropouts(patient: Patient, model: nn.Module, names: PeftNames) -> None:
    """Replace the library's dropouts by ours, whose masks do not depend on the batch's layout."""
    wanted = {k: v for k, v in patient.options.items() if k.endswith("dropout") and v}
    replaced = 0
    for path, part in list(model.named_modules()):
        if isinstance(part, nn.Dropout) and path.removeprefix(names.prefix) not in names.modules:
            parent, _, name = path.rpartition(".")
            keyed = KeyedDropout(part.p, patient.keys, names.wire(path))
            setattr(model.get_submodule(parent), name, keyed)
            replaced += part.p > 0
    if wanted and not replaced:
        key, value = next(iter(wanted.items()))
        raise _error(
            patient,
            f"{key} = {value!r}: this dropout draws from a global generator inside the library, so "
            "results would depend on how batches are laid out; set it to 0",
        )


def _cut_virtual_tokens(patient: Patient, model: nn.Module) -> None:
    if patient.loaded.task.per_token:
        num_tokens = cast(int, patient.options["num_virtual_tokens"])
        model.register_forward_hook(_CutVirtualTokens(num_tokens))


def _first_layers(patient: Patient) -> str:
    module = patient.loaded.module
    head = set(patient.loaded.head)
    linear = [n for n, p in module.named_modules() if isinstance(p, nn.Linear) and n not in head]
    first = ", ".join(linear[:4])
    return f"set `target_modules = [...]` in [tuning.options]; the first linear layers are {first}"


def _error(patient: Patient, what: str) -> TuningError:
    loaded = patient.loaded
    return TuningError(
        f"tuning.method {patient.method} on {loaded.source} (family {loaded.family.name}): {what}"
    )
