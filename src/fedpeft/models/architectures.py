"""Architectures: from a config to a module for a task, by `transformers` or our own ShuffleNet.

    config.json ── read_config ──> config ── build ─────────> untrained module
                                      └───── load_weights ──> module, missing and misshapen tensors

Code from a repository is never run: only classes of the installed library are built, and only
safetensors files are read.
"""

from __future__ import annotations

import copy
import dataclasses
import os
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import nn

from fedpeft.core import seeds
from fedpeft.core.errors import ModelError
from fedpeft.core.text import plain
from fedpeft.models.limits import MOST_LABELS, check_counts, check_tables, limited
from fedpeft.models.mistaken import no_config
from fedpeft.models.presets import Preset
from fedpeft.models.quiet import quiet, zero_dropout
from fedpeft.models.reading import read_object, reading
from fedpeft.models.shufflenet import (
    ShuffleNet,
    ShuffleNetConfig,
    load_shufflenet,
    read_shufflenet_config,
)
from fedpeft.models.tasks import IMAGE_CLASSIFICATION, TASKS, Task
from fedpeft.models.weight_files import stored_tensors, weight_files

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


ModelConfig: TypeAlias = "PreTrainedConfig | ShuffleNetConfig"


@dataclass(frozen=True)
class Weights:
    """A module with weights from files.

    Attributes:
      module: the module, on the CPU.
      missing: in-memory names of the tensors that the files lack.
      misshapen: in-memory names of the tensors that have another shape in the files.
      integers: names, in the files, of the tensors that hold no floating-point numbers, with their
        types.
    """

    module: nn.Module
    missing: frozenset[str]
    misshapen: frozenset[str]
    integers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Described:
    """What describes an architecture.

    Attributes:
      where: the file or name, for messages.
      stored: number of elements of each tensor in the model's files; None where not known.
    """

    where: str
    stored: tuple[int, ...] | None = None


def read_config(folder: Path) -> ModelConfig:
    """Read a folder's `config.json`.

    Raises:
      ModelError: if it is missing, not JSON, asks for more than any model has, or is of a model
        type that this `transformers` lacks.
    """
    file = folder / "config.json"
    if not os.path.lexists(file):
        raise ModelError(f"{folder}: {no_config(folder)}")
    found = read_object(file)
    _check_kinds(found, file)
    model_type = found.get("model_type")
    if model_type == ShuffleNetConfig.model_type:
        return read_shufflenet_config(file)
    from transformers import AutoConfig

    check_counts(found, file, _known_keys(model_type))
    with (
        quiet(),
        reading(
            file,
            f"model type {plain(repr(model_type), 80)} cannot be read by this transformers",
            advice="correct it, or fetch the model again; a model's own code is never run",
        ),
    ):
        config: PreTrainedConfig = AutoConfig.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
        text = config.get_text_config()
    if not hasattr(text, "model_type"):
        raise ModelError(
            f"{file}: the settings of its text model: found {plain(repr(text), 80)}; a table is "
            "expected: correct the file, or fetch the model again"
        )
    check_tables(config, file)
    return config


def _check_kinds(found: Mapping[str, object], file: Path) -> None:
    """Check the keys of a config that this package reads itself."""
    model_type, names = found.get("model_type"), found.get("architectures")
    if model_type is not None and not isinstance(model_type, str):
        raise ModelError(
            f"{file}: model_type: found {plain(repr(model_type), 80)}; the name of a model type is "
            "expected: correct the file, or fetch the model again"
        )
    texts = isinstance(names, list) and all(isinstance(name, str) for name in names)
    if names is not None and not texts:
        raise ModelError(
            f"{file}: architectures: found {plain(repr(names), 80)}; a list with the name of a "
            "class is expected: correct the file, or fetch the model again"
        )


def _known_keys(model_type: object) -> frozenset[str]:
    """Return the keys that the library's config of a type has, in all their spellings."""
    from transformers import CONFIG_MAPPING

    if model_type not in CONFIG_MAPPING:
        return frozenset()
    kind = CONFIG_MAPPING[model_type]
    names = {each.name for each in dataclasses.fields(kind)}
    return frozenset({*names, *kind.attribute_map, "num_labels"})


def preset_config(preset: Preset) -> ModelConfig:
    """Make the config of a preset."""
    settings: dict[str, Any] = dict(preset.settings)
    if preset.model_type == ShuffleNetConfig.model_type:
        return ShuffleNetConfig(**settings)
    from transformers import AutoConfig

    num_labels = settings.pop("num_labels", None)
    with quiet():
        config: PreTrainedConfig = AutoConfig.for_model(preset.model_type, **settings)
    if num_labels is not None:
        config.num_labels = num_labels
    return config


def infer_task(config: ModelConfig, *, where: str) -> Task:
    """Infer the task from a config: from its class names, else from what its model type supports.

    Among tasks with equal inputs and the same kind of head, the first row of `TASKS` is preferred.

    Raises:
      ModelError: if the model supports none of the tasks, or several without a preferred one.
    """
    if isinstance(config, ShuffleNetConfig):
        return IMAGE_CLASSIFICATION
    for architecture in getattr(config, "architectures", None) or ():
        for task in TASKS.values():
            if architecture.endswith(task.class_endings) and _classes(config, task):
                return task
    usual = {(task.inputs, task.new_head): task for task in reversed(_tasks_of(config))}
    classifier = usual.get(("text", True))
    if len(usual) == 1:
        return next(iter(usual.values()))
    if classifier is not None and getattr(config, "is_decoder", None) is False:
        return classifier
    names = [task.name for task in _tasks_of(config)]
    raise ModelError(
        f"model {where!r}: type {config.model_type!r} supports {names or 'no known task'}; "
        f"set the task to one of {', '.join(names or TASKS)}"
        + ("" if names else ", or wrap the module from Python")
    )


def fit_config(
    config: ModelConfig, task: Task, *, num_labels: int | None, where: str
) -> ModelConfig:
    """Return a copy of a config for a task: its class, its number of labels, no dropout.

    Raises:
      ModelError: if the model does not support the task, or nobody has so many labels.
    """
    if num_labels is not None and num_labels > MOST_LABELS:
        raise ModelError(
            f"model.num_labels: found {num_labels:,}; allowed is at most {MOST_LABELS:,}: lower "
            "it, or leave it out to take the number from the data"
        )
    if isinstance(config, ShuffleNetConfig):
        if task != IMAGE_CLASSIFICATION:
            raise _unfit(where, config.model_type, task, [IMAGE_CLASSIFICATION])
        labels = config.num_labels if num_labels is None else num_labels
        return dataclasses.replace(config, num_labels=labels)
    classes = _classes(config, task)
    if not classes:
        raise _unfit(where, config.model_type, task, _tasks_of(config))
    fitted = copy.deepcopy(config)
    named = [c for c in getattr(config, "architectures", None) or () if c in classes]
    fitted.architectures = [named[0] if named else classes[0]]
    zero_dropout(fitted)
    outputs = task.outputs or num_labels
    if task.new_head and outputs is not None:
        fitted.num_labels = outputs
    if task.new_head:
        fitted.problem_type = task.problem_type
    _drop_bad_padding(fitted)
    return fitted


def _drop_bad_padding(config: PreTrainedConfig) -> None:
    """Remove a padding id that is no row of the embedding, which torch would refuse or wrap."""
    for part in (config, config.get_text_config()):
        pad, rows = getattr(part, "pad_token_id", None), getattr(part, "vocab_size", None)
        outside = isinstance(rows, int) and isinstance(pad, int) and not 0 <= pad < rows
        if outside or not isinstance(pad, int | None):
            part.pad_token_id = None


def build(
    config: ModelConfig, task: Task, *, attention: str | None, described: Described
) -> nn.Module:
    """Build an untrained module on the current device, drawing from the global generators.

    Raises:
      ModelError: if no model can be built as the config says, or it does not support this
        implementation of attention.
    """
    where = described.where
    with quiet(), limited(where, described.stored), _building(where, attention):
        if isinstance(config, ShuffleNetConfig):
            return ShuffleNet(config)
        import transformers

        auto = getattr(transformers, task.auto_class)
        module: nn.Module = auto.from_config(
            config, dtype=torch.float32, trust_remote_code=False, attn_implementation=attention
        )
    empty = [name for name, each in module.named_parameters() if not each.numel()]
    if empty:
        raise ModelError(
            f"{where}: gives {len(empty)} tensors without any number: {', '.join(empty[:3])}; "
            "correct its sizes, which must be 1 or more"
        )
    return module


def load_weights(
    folder: Path,
    config: ModelConfig,
    task: Task,
    *,
    attention: str | None,
    where: str,
    dtype: torch.dtype = torch.float32,
) -> Weights:
    """Build a module and fill it from the safetensors files of a folder.

    Args:
      folder: with the files.
      config: that `fit_config` returned.
      task: of the model.
      attention: `sdpa` or `eager`; None is the library's choice.
      where: what the config was read from, for messages.
      dtype: type of the module's numbers.

    Raises:
      ModelError: if the files are missing or broken, do not fit the config at all, or the model
        does not support this implementation of attention.
    """
    stored = stored_tensors(folder)
    sizes = tuple(each.num_elements for each in stored.values())
    integers = {name: each.kind for name, each in stored.items() if not each.is_floating}
    if isinstance(config, ShuffleNetConfig):
        with torch.device("meta"):
            build(config, task, attention=attention, described=Described(where, sizes))
        network, bad = load_shufflenet(folder, config)
        return Weights(network, frozenset(), bad, integers)
    import transformers

    auto = getattr(transformers, task.auto_class)
    try:
        with quiet(), limited(where, sizes), _reading_weights(folder, config):
            module, info = auto.from_pretrained(
                folder,
                config=config,
                dtype=dtype,
                local_files_only=True,
                use_safetensors=True,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                trust_remote_code=False,
                attn_implementation=attention,
            )
    except ModelError as error:
        if error.__cause__ is not None:  # of the library: if the config is at fault, say so
            with seeds.isolated(0), torch.device("meta"):
                build(config, task, attention=attention, described=Described(where))
        raise
    misshapen = frozenset(key[0] for key in info["mismatched_keys"])
    missing = frozenset(info["missing_keys"]) - misshapen
    return Weights(module, missing, misshapen, integers)


def _tasks_of(config: PreTrainedConfig) -> list[Task]:
    return [task for task in TASKS.values() if _classes(config, task)]


def _classes(config: PreTrainedConfig, task: Task) -> list[str]:
    """Return the names of the library's classes for a config and a task, the default one first."""
    import transformers

    mapping = getattr(transformers, task.auto_class)._model_mapping
    if type(config) not in mapping:
        return []
    found = mapping[type(config)]
    return [cls.__name__ for cls in (found if isinstance(found, list | tuple) else [found])]


def _unfit(where: str, model_type: str, task: Task, able: list[Task]) -> ModelError:
    names = ", ".join(each.name for each in able)
    return ModelError(
        f"model {where!r}: type {model_type!r} does not support {task.name}; "
        f"it supports {names or 'no known task'}: choose another model or task"
    )


def _building(where: object, attention: str | None) -> AbstractContextManager[None]:
    """Guard the library while it builds what a config says."""
    option = f" with attention {attention!r}" if attention else ""
    advice = "correct its numbers and names" + (", or leave the attention out" if option else "")
    return reading(where, f"the model cannot be built{option}", advice=advice)


def _reading_weights(folder: Path, config: PreTrainedConfig) -> AbstractContextManager[None]:
    """Guard the library while it reads the weights of a folder."""
    files = (*weight_files(folder), folder / "generation_config.json")
    if getattr(config, "quantization_config", None):
        advice = "they are quantised (quantization_config): give the model as it was before"
        return reading(folder, "the weights cannot be read", files=files, advice=advice)
    return reading(folder, "the weights cannot be read", files=files)
