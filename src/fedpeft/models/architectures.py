"""Architectures: from a config to a module, by the task, with `transformers` or our own network.

    config.json ── read_config ──> config ── build ─────────> module, untrained
                                      └───── load_weights ──> module, and what did not fit

Code from a repository is never run: only classes of the installed library are built, and only
safetensors files are read.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import json
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
from fedpeft.models.tasks import (
    CAUSAL_LM,
    IMAGE_CLASSIFICATION,
    TASKS,
    TEXT_CLASSIFICATION,
    VIDEO_CLASSIFICATION,
)

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

__all__ = [
    "ModelConfig",
    "Weights",
    "build",
    "fit_config",
    "infer_task",
    "load_weights",
    "preset_config",
    "read_config",
    "tensor_names",
]

ModelConfig: TypeAlias = "PreTrainedConfig | ShuffleNetConfig"

_AUTO = {
    IMAGE_CLASSIFICATION.name: "AutoModelForImageClassification",
    TEXT_CLASSIFICATION.name: "AutoModelForSequenceClassification",
    CAUSAL_LM.name: "AutoModelForCausalLM",
    VIDEO_CLASSIFICATION.name: "AutoModelForVideoClassification",
}
_SUFFIXES = {
    "ForImageClassification": IMAGE_CLASSIFICATION.name,
    "ForImageClassificationWithTeacher": IMAGE_CLASSIFICATION.name,
    "ForSequenceClassification": TEXT_CLASSIFICATION.name,
    "ForCausalLM": CAUSAL_LM.name,
    "LMHeadModel": CAUSAL_LM.name,
    "ForVideoClassification": VIDEO_CLASSIFICATION.name,
}


@dataclass(frozen=True)
class Weights:
    """A module with weights from files.

    Attributes:
      module: on the CPU, float32.
      missing: in-memory names of the tensors that the files do not hold.
      misshapen: in-memory names of those that they hold with another shape.
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


def infer_task(config: ModelConfig, *, where: str) -> str:
    """Tell the task's name from a config: by its class names, else by what the model type can do.

    Raises:
      ModelError: if the model can do none of our tasks, or several and nothing says which.
    """
    if isinstance(config, ShuffleNetConfig):
        return IMAGE_CLASSIFICATION.name
    for architecture in getattr(config, "architectures", None) or ():
        for suffix, task in _SUFFIXES.items():
            if architecture.endswith(suffix):
                return task
    able = [task for task in _AUTO if _classes(config, task)]
    if getattr(config, "is_decoder", None) is False and TEXT_CLASSIFICATION.name in able:
        return TEXT_CLASSIFICATION.name
    if len(able) == 1:
        return able[0]
    raise ModelError(
        f"model {where!r}: type {config.model_type!r} can do {able or 'none of our tasks'}; "
        f"set the task to one of {', '.join(able or TASKS)}"
        + ("" if able else ", or wrap the module from Python")
    )


def fit_config(
    config: ModelConfig, task: str, *, num_labels: int | None, where: str
) -> ModelConfig:
    """Return a copy of a config for a task: its class, its number of labels, no dropout.

    Raises:
      ModelError: if the task is unknown, or not one of this model's.
    """
    if task not in TASKS:
        raise ModelError(f"task {task!r}: unknown; choose one of {', '.join(TASKS)}")
    if isinstance(config, ShuffleNetConfig):
        if task != IMAGE_CLASSIFICATION.name:
            raise _unfit(where, config.model_type, task, [IMAGE_CLASSIFICATION.name])
        labels = config.num_labels if num_labels is None else num_labels
        return dataclasses.replace(config, num_labels=labels)
    classes = _classes(config, task)
    if not classes:
        raise _unfit(where, config.model_type, task, [t for t in _AUTO if _classes(config, t)])
    fitted = copy.deepcopy(config)
    named = [c for c in getattr(config, "architectures", None) or () if c in classes]
    fitted.architectures = [named[0] if named else classes[0]]
    zero_dropout(fitted)
    if task != CAUSAL_LM.name and num_labels is not None:
        fitted.num_labels = num_labels
    if task == TEXT_CLASSIFICATION.name and getattr(fitted, "pad_token_id", None) is None:
        fitted.pad_token_id = _first_id(getattr(fitted, "eos_token_id", None))
    return fitted


def build(config: ModelConfig, task: str, *, attention: str | None) -> nn.Module:
    """Build an untrained module on the current device, drawing from the global generators.

    Raises:
      ModelError: if the model has no such attention.
    """
    if isinstance(config, ShuffleNetConfig):
        return ShuffleNet(config)
    import transformers

    auto = getattr(transformers, _AUTO[task])
    with quiet(), _explained(config.model_type, attention):
        module: nn.Module = auto.from_config(
            config, dtype=torch.float32, trust_remote_code=False, **_attention(attention)
        )
    return module


def load_weights(folder: Path, config: ModelConfig, task: str, *, attention: str | None) -> Weights:
    """Build a module and fill it from the safetensors files of a folder.

    Raises:
      ModelError: if the files are missing or broken, or the model has no such attention.
    """
    if isinstance(config, ShuffleNetConfig):
        with _explained(str(folder), attention):
            network, bad = load_shufflenet(folder, config)
        return Weights(network, missing=frozenset(), misshapen=bad)
    _check_files(folder)
    import transformers

    auto = getattr(transformers, _AUTO[task])
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
            **_attention(attention),
        )
    misshapen = frozenset(key[0] for key in info["mismatched_keys"])
    return Weights(module, frozenset(info["missing_keys"]) - misshapen, misshapen)


def tensor_names(folder: Path) -> frozenset[str]:
    """Names of the tensors in a folder's safetensors files, read from their headers alone."""
    from safetensors import safe_open

    names: set[str] = set()
    for file in sorted(folder.glob("model*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            names.update(tensors.keys())
    return frozenset(names)


def _classes(config: PreTrainedConfig, task: str) -> list[str]:
    """Names of the library's classes for a config and a task, the usual one first."""
    import transformers

    mapping = getattr(transformers, _MAPPINGS[task])
    if type(config) not in mapping:
        return []
    found = mapping[type(config)]
    return [cls.__name__ for cls in (found if isinstance(found, list | tuple) else [found])]


def _unfit(where: str, model_type: str, task: str, able: list[str]) -> ModelError:
    return ModelError(
        f"model {where!r}: type {model_type!r} has no {task} form; "
        f"it can do {', '.join(able) or 'none of our tasks'}: choose another model or task"
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
    """Turn what the library raises for bad files or options into one `ModelError`."""
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


def _attention(name: str | None) -> dict[str, str]:
    """By default the library takes `sdpa` where the model has it, else `eager`."""
    return {} if name is None else {"attn_implementation": name}


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _first_id(tokens: object) -> object:
    """The token that pads where the model names none: the last position is then found by it."""
    return tokens[0] if isinstance(tokens, list) and tokens else tokens


_MAPPINGS = {
    IMAGE_CLASSIFICATION.name: "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING",
    TEXT_CLASSIFICATION.name: "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING",
    CAUSAL_LM.name: "MODEL_FOR_CAUSAL_LM_MAPPING",
    VIDEO_CLASSIFICATION.name: "MODEL_FOR_VIDEO_CLASSIFICATION_MAPPING",
}
