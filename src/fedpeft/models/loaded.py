"""What loading a model gives: the module, its family, its task and how its inputs are made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from torch import nn

from fedpeft.models.families import Family
from fedpeft.models.tasks import Task

__all__ = ["ImageInput", "InputSpec", "LoadedModel", "TextInput", "VideoInput"]


@dataclass(frozen=True)
class ImageInput:
    """How images become `pixel_values` [B, channels, height, width], float32.

    Attributes:
      height: in pixels.
      width: in pixels.
      channels: 1 or 3.
      mean: one number a channel, after rescaling.
      std: one number a channel, > 0.
      rescale: factor on raw pixel values, before mean and std (1/255 for ordinary images).
      resample: `nearest`, `bilinear` or `bicubic`.
    """

    height: int
    width: int
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    rescale: float = 1 / 255
    resample: str = "bilinear"


@dataclass(frozen=True)
class TextInput:
    """How texts become `input_ids` and `attention_mask` [B, T], int64.

    Attributes:
      folder: where `AutoTokenizer.from_pretrained` finds the tokenizer (a folder or a hub id); ""
        for an untrained preset, which has none.
      max_length: longest input of the model, in tokens.
    """

    folder: str
    max_length: int


@dataclass(frozen=True)
class VideoInput:
    """How clips become `pixel_values` [B, frames, channels, height, width], float32.

    Attributes:
      frames: of a clip that the model takes; >= 1.
      picture: what each frame becomes.
    """

    frames: int
    picture: ImageInput


InputSpec: TypeAlias = ImageInput | TextInput | VideoInput | None
"""None for a module of the user's own, whose batches are made by the user's data set."""


@dataclass(frozen=True)
class LoadedModel:
    """A model before tuning: every backbone tensor is known, the head is new.

    Attributes:
      module: the model, in eval mode, all dropout off, float32, on the CPU (on `meta` for plans).
      task: how a batch is scored.
      family: names, blocks and default targets (`PLAIN` for a module that no family knows).
      head: module paths of the head inside `module`; () where the model has none of its own.
      inputs: how raw examples become batches.
      source: what the user named: hub id, folder, bundled name or preset.
      folder: a local folder with the original files (weights, processor, tokenizer), or None.
      fresh: in-memory parameter names that loading did not find and that were initialised: a part
        of the head, always trained.
      recorded: dotted keys of an experiment file by which the same model is loaded again; {} for a
        module that was passed from Python.
    """

    module: nn.Module
    task: Task
    family: Family
    head: tuple[str, ...]
    inputs: InputSpec
    source: str
    folder: Path | None = None
    fresh: frozenset[str] = field(default_factory=frozenset)
    recorded: Mapping[str, object] = field(default_factory=dict)
