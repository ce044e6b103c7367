"""The result of loading a model: the module, its family, its task and its input format."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from torch import nn

from fedpeft.models.families import Family
from fedpeft.models.storage import FLOAT32, Storage
from fedpeft.models.tasks import Task


@dataclass(frozen=True)
class ImageInput:
    """The image format of a model: `pixel_values` [B, channels, height, width], float32.

    Attributes:
      height: height in pixels.
      width: width in pixels.
      channels: 1 or 3.
      mean: one number per channel, after rescaling.
      std: one number per channel, > 0.
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
class PadTokens:
    """The tokens that a model's config offers for padding.

    Attributes:
      pad: the config's padding token, if the model has an embedding for it.
      eos: its end-of-text tokens, in order.
      num_tokens: rows of the token embedding; None where it is not known.
      fixed: whether positions are counted from the padding id, which therefore cannot change.
      ends: whether the head finds the end of a text by the padding.
    """

    pad: int | None = None
    eos: tuple[int, ...] = ()
    num_tokens: int | None = None
    fixed: bool = False
    ends: bool = False


@dataclass(frozen=True)
class TextInput:
    """The text format of a model: `input_ids` and `attention_mask` [B, T], int64.

    Attributes:
      folder: folder or hub id of the tokenizer, for `AutoTokenizer.from_pretrained`; "" for an
        untrained preset without one.
      max_length: longest input of the model, in tokens.
      padding: the tokens that the model's config offers for padding.
    """

    folder: str
    max_length: int
    padding: PadTokens = field(default_factory=PadTokens)


@dataclass(frozen=True)
class VideoInput:
    """The clip format of a model: `pixel_values` [B, frames, channels, height, width], float32.

    Attributes:
      frames: number of frames in a clip; >= 1.
      picture: format of each frame.
    """

    frames: int
    picture: ImageInput


InputSpec: TypeAlias = ImageInput | TextInput | VideoInput | None
"""The input format of a model; None for a custom module, whose data set returns batches."""


@dataclass(frozen=True)
class LoadedModel:
    """A model before tuning, with pretrained weights in the whole backbone.

    Attributes:
      module: the model, in eval mode, all dropout off, on the CPU (on `meta` for plans); float32
        but for what `storage` says.
      task: how a batch is scored.
      family: names, blocks and default targets (`PLAIN` for an unknown module).
      head: module paths of the head inside `module`; () if the model has none.
      inputs: how raw examples become batches.
      source: the name that the user gave: hub id, folder, bundled name or preset.
      folder: a local folder with the original files (weights, processor, tokenizer), or None.
      fresh: in-memory names of parameters that the files lack and that were newly initialised;
        they belong to the head and always train.
      recorded: dotted keys and values of an experiment file that loads the same model; {} for a
        module that was passed from Python.
      storage: how its frozen weights are stored once it is tuned; until then, what is to be stored
        in half precision is so already.
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
    storage: Storage = FLOAT32
