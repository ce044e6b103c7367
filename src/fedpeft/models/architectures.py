"""Architectures: from a config to a module for a task, by `transformers` or our own ShuffleNet.

    config.json ── read_config ──> config ── build ─────────> untrained module
                                      └───── load_weights ──> module, missing and misshapen tensors

Code from a repository is never run: only classes of the installed library are built, and only
safetensors files are read.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import nn

from fedpeft.core.errors import ModelError
from fedpeft.models.presets import Preset
from fedpeft.models.quiet import quiet, zero_dropout
from fedpeft.models.shufflenet import (
    ShuffleNet,
    ShuffleNetConfig,
    load_shufflenet,
    read_shufflenet_config,
)
from fedpeft.models.tasks import IMAGE_CLASSIFICATION, TASKS, Task

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


ModelConfig: TypeAlias = "PreTrainedConfig | ShuffleNetConfig"


@dataclass(frozen=True)
class Weights:
    """A module with weights from files.

    Attributes:
      module: the module, on the CPU, float32.
      missing: in-memory names of the tensors that the files lack.
      misshapen: in-memory names of the tensors that have another shape in the files.
    """

    module: nn.Module
    missing: frozenset[str]
    misshapen: frozenset[str]


def read_config(folder: Path) -> ModelConfig:
    """Read a folder's `config.json`.

    Raises:
      ModelError: if it is missing, not JSON, or of a model type that this `transformers` lacks.
    """
    file = folder / "config.json"
    if not file.is_file():
        raise ModelError(f"{folder}: has no config.json; a model folder holds config and weights")
    try:
        model_type = json.loads(file.read_text()).get("model_type")
    except (ValueError, AttributeError) as error:
        raise ModelError(f"{file}: not a JSON object ({error})") from error
    if model_type == ShuffleNetConfig.model_type:
        return read_shufflenet_config(file)
    from transformers import AutoConfig

    try:
        with quiet():
            return AutoConfig.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
    except (ValueError, KeyError, OSError, TypeError) as error:
        raise ModelError(
            f"{file}: model type {model_type!r} cannot be read by the installed transformers "
            f"({_first_line(error)}); code that comes with a model is never run"
        ) from error


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
            if architecture.endswith(task.class_endings):
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
      ModelError: if the model does not support the task.
    """
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
    if task.new_head and num_labels is not None:
        fitted.num_labels = num_labels
    if task.new_head:
        fitted.problem_type = "single_label_classification"
    _drop_bad_padding(fitted)
    return fitted


def _drop_bad_padding(config: PreTrainedConfig) -> None:
    """Remove a padding id that is no row of the embedding, which torch would refuse or wrap."""
    for part in (config, config.get_text_config()):
        pad, rows = getattr(part, "pad_token_id", None), getattr(part, "vocab_size", None)
        if pad is not None and rows is not None and not 0 <= pad < rows:
            part.pad_token_id = None


def build(config: ModelConfig, task: Task, *, attention: str | None) -> nn.Module:
    """Build an untrained module on the current device, drawing from the global generators.

    Raises:
      ModelError: if the model does not support this implementation of attention.
    """
    if isinstance(config, ShuffleNetConfig):
        return ShuffleNet(config)
    import transformers

    auto = getattr(transformers, task.auto_class)
    with quiet(), _explained(config.model_type, attention):
        module: nn.Module = auto.from_config(
            config, dtype=torch.float32, trust_remote_code=False, attn_implementation=attention
        )
    return module


def load_weights(
    folder: Path, config: ModelConfig, task: Task, *, attention: str | None
) -> Weights:
    """Build a module and fill it from the safetensors files of a folder.

    Raises:
      ModelError: if the files are missing or broken, or the model does not support this
        implementation of attention.
    """
    if isinstance(config, ShuffleNetConfig):
        with _explained(str(folder), attention):
            network, bad = load_shufflenet(folder, config)
        return Weights(network, missing=frozenset(), misshapen=bad)
    _check_files(folder)
    import transformers

    auto = getattr(transformers, task.auto_class)
    with quiet(), _explained(str(folder), attention):
        module, info = auto.from_pretrained(
            folder,
            config=config,
            dtype=torch.float32,
            local_files_only=True,
            use_safetensors=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            trust_remote_code=False,
            attn_implementation=attention,
        )
    misshapen = frozenset(key[0] for key in info["mismatched_keys"])
    return Weights(module, frozenset(info["missing_keys"]) - misshapen, misshapen)


def tensor_sizes(folder: Path) -> dict[str, int]:
    """Map the tensors in a folder's safetensors files to their number of floating-point elements.

    Only the headers are read; tensors of other types count 0.
    """
    from safetensors import safe_open

    sizes: dict[str, int] = {}
    for file in sorted(folder.glob("model*.safetensors")):
        with safe_open(file, framework="np") as tensors:
            slices = {name: tensors.get_slice(name) for name in tensors.keys()}  # noqa: SIM118
        for name, part in slices.items():
            sizes[name] = math.prod(part.get_shape()) if "F" in part.get_dtype() else 0
    return sizes


def _tasks_of(config: PreTrainedConfig) -> list[Task]:
    return [task for task in TASKS.values() if _classes(config, task)]


def _classes(config: PreTrainedConfig, task: Task) -> list[str]:
    """Return the names of the library's classes for a config and a task, the default one first."""
    import transformers

    words = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", task.auto_class.removeprefix("Auto"))
    mapping = getattr(transformers, f"{words.upper()}_MAPPING")
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


def _check_files(folder: Path) -> None:
    if not any(folder.glob("model*.safetensors")):
        other = sorted(p.name for p in folder.iterdir() if p.suffix in (".bin", ".pth", ".pt"))
        raise ModelError(
            f"{folder}: has no model.safetensors (found {other or 'no weights at all'}); pickled "
            "weights are not read: turn them into safetensors with save_pretrained, or use "
            "`fedpeft convert`"
        )


@contextlib.contextmanager
def _explained(where: str, attention: str | None) -> Iterator[None]:
    """Convert the library's errors for bad files or options into a `ModelError`."""
    from safetensors import SafetensorError

    try:
        yield
    except (SafetensorError, OSError, RuntimeError) as error:
        raise ModelError(
            f"{where}: the weights cannot be read ({_first_line(error)}); fetch them again"
        ) from error
    except (ValueError, ImportError) as error:
        option = f" with attention {attention!r}" if attention else ""
        raise ModelError(f"{where}: cannot be built{option}: {_first_line(error)}") from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
