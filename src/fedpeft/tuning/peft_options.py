"""Options of the `peft` methods: the library's config fields, except those unsuitable here.

A field is refused, with the reason, if it would change frozen weights, if it needs data or calls
that a federated round does not provide, or if its value follows from the model and the run.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

from fedpeft.core.text import shown
from fedpeft.models.limits import MOST_MODULES
from fedpeft.tuning.option_checks import LARGEST_SIZE, ResolvedOptions, unknown_options
from fedpeft.tuning.peft_table import PEFT_TYPES, SEED_FIELDS, short_form

if TYPE_CHECKING:
    from peft import PeftConfig


_OURS = "it follows from the model and the run"
_LOOP = "it needs data or calls that a federated round does not make"
_WEIGHTS = "it changes frozen weights, so that they would no longer be those of the backbone"
_MODULES = "the head trains anyway; other modules train by methods full, bias or ln_tuning"
_SET_BY_THE_RUN = (
    "auto_mapping", "base_model_name_or_path", "ephemeral_gpu_offload", "inference_mode",
    "num_attention_heads", "num_layers", "num_transformer_submodules", "peft_type", "peft_version",
    "revision", "runtime_config", "task_type", "token_dim",
)  # fmt: skip
_NEEDING_CALLS = (
    "alora_invocation_tokens", "arrow_config", "corda_config", "eva_config", "kasa_config",
    "lora_ga_config", "monteclora_config", "use_bdlora", "velora_config",
)  # fmt: skip
_REFUSED: Mapping[str, str] = {
    **dict.fromkeys(_SET_BY_THE_RUN, _OURS),
    **dict.fromkeys(_NEEDING_CALLS, _LOOP),
    **dict.fromkeys(
        ("layer_replication", "loftq_config", "use_qalora", "qalora_group_size"), _WEIGHTS
    ),
    **dict.fromkeys(("megatron_config", "megatron_core"), "tensor parallelism is not supported"),
    **dict.fromkeys(("modules_to_save", "trainable_token_indices"), _MODULES),
    "target_parameters": "name the layers in `target_modules`",
}
_LORA_STARTS = (True, False, "gaussian", "orthogonal")
_SIMPLE: Mapping[str, type] = {"bool": bool, "int": int, "float": float, "str": str}
_LEAST: Mapping[str, int] = {"adapter_len": 1, "lora_alpha": 1, "num_virtual_tokens": 1, "r": 1}
_SIZES = (
    "adapter_len",
    "encoder_hidden_size",
    "init_r",
    "num_virtual_tokens",
    "r",
    "target_r",
    "u",
)
_MOST: Mapping[str, int] = {
    **dict.fromkeys(_SIZES, LARGEST_SIZE),
    **dict.fromkeys(("depth", "encoder_num_layers"), 100),
    "theta_d_length": 10_000_000,
}


def config_class(name: str) -> type[PeftConfig]:
    """Return the library's config class of a type."""
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
    from peft.utils import PeftType

    found: type[PeftConfig] = PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(name.upper())]
    return found


def option_names(name: str) -> list[str]:
    """Return the options that a type takes here."""
    fields = dataclasses.fields(config_class(name))
    return sorted(field.name for field in fields if field.name not in _REFUSED)


def read_options(config: PeftConfig) -> dict[str, object]:
    """Return the fields of a config that were set, except those that follow from the model.

    Unsupported fields are included: `resolve_peft` reports them with the reason. Seeds of frozen
    random parts are always included. `modules_to_save` is not: those modules become the head.
    """
    return {
        field.name: _plain(value)
        for field in dataclasses.fields(config)
        if _REFUSED.get(field.name) != _OURS and field.name != "modules_to_save"
        if (value := getattr(config, field.name)) != _default(field) or field.name in SEED_FIELDS
    }


def _default(field: dataclasses.Field[object]) -> object:
    made = field.default_factory
    return field.default if made is dataclasses.MISSING else made()


def resolve_peft(method: str, options: Mapping[str, object]) -> ResolvedOptions:
    """Fill in the defaults of a type's options, and list all invalid ones.

    Fields without a default (`target_modules`, seeds) are left out unless they are given: they
    follow from the family and from the run's seed.
    """
    name, meant = short_form(method)
    fields = {field.name: field for field in dataclasses.fields(config_class(name))}
    allowed = option_names(name)
    problems = unknown_options(method, [key for key in options if key not in fields], allowed)
    known_ones = [(key, value) for key, value in options.items() if key in fields]
    found = [_problem(method, fields, key, value) for key, value in known_ones]
    problems += [problem for problem in found if problem]
    given = {**PEFT_TYPES[name].defaults, **options, **meant}
    if name == "oft" and "r" in options and "oft_block_size" not in options:
        given["oft_block_size"] = 0
    if not problems:
        problems = _problems_of_config(method, name, given)
    defaults = {key: _plain(fields[key].default) for key in allowed if key not in SEED_FIELDS}
    known = {k: v for k, v in defaults.items() if isinstance(v, bool | int | float | str)}
    return ResolvedOptions({**known, **given}, tuple(problems))


def _problem(
    method: str,
    fields: Mapping[str, dataclasses.Field[object]],
    key: str,
    value: object,
) -> str:
    """Return what is wrong with one option; empty if it is valid."""
    if key in _REFUSED:
        return f"{key}: not supported: {_REFUSED[key]}"
    if key == "init_lora_weights" and value not in _LORA_STARTS:
        return f"{key} = {shown(value)}: {_WEIGHTS}; allowed are true, false, gaussian, orthogonal"
    if key == "prompt_tuning_init" and value != "RANDOM":
        return (
            f"{key} = {shown(value)}: allowed is RANDOM (other initialisations load further files)"
        )
    if key == "bias" and value not in ("none", "all", "lora_only", f"{method}_only"):
        return f"{key} = {shown(value)}: allowed are none, all, {method}_only"
    if not _fits(fields[key], value):
        return f"{key} = {shown(value)}: expected {_annotation(fields[key])}"
    if isinstance(value, int) and value < _LEAST.get(key, value) and method != "oft":
        return f"{key} = {shown(value)}: expected a whole number >= 1"
    if isinstance(value, int) and value > _MOST.get(key, value):
        return f"{key} = {shown(value)}: expected at most {_MOST[key]:,}"
    if key == "rank_pattern" and isinstance(value, Mapping):
        ranks = [rank for rank in value.values() if isinstance(rank, int) and rank > LARGEST_SIZE]
        if ranks:
            return f"{key}: found a rank of {shown(ranks[0])}; expected at most {LARGEST_SIZE:,}"
    if isinstance(value, Collection) and not isinstance(value, str) and len(value) > MOST_MODULES:
        return f"{key}: found {len(value):,} entries; expected at most {MOST_MODULES:,}"
    if "dropout" in key and isinstance(value, float | int) and not 0 <= value < 1:
        return f"{key} = {shown(value)}: expected a probability, 0 <= p < 1"
    return ""


def _problems_of_config(method: str, name: str, given: Mapping[str, object]) -> list[str]:
    """Run the library's own checks of the options."""
    try:
        config_class(name)(**given)
    except (ValueError, TypeError, AssertionError) as error:
        return [f"peft refuses the options of {method}: {error}"]
    return []


def _fits(field: dataclasses.Field[object], value: object) -> bool:
    expected = _SIMPLE.get(_annotation(field))
    if expected is None:
        return True
    if expected is float:
        return isinstance(value, float | int) and not isinstance(value, bool)
    return isinstance(value, expected) and (expected is bool or not isinstance(value, bool))


def _annotation(field: dataclasses.Field[object]) -> str:
    return field.type if isinstance(field.type, str) else field.type.__name__


def _plain(value: object) -> object:
    if isinstance(value, set | frozenset):
        return sorted(value)
    return value.value if isinstance(value, enum.Enum) else value
