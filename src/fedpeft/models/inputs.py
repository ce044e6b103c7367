"""Input formats: how examples must be prepared for a model, according to its files.

    preprocessor_config.json  -> ImageInput   (size, channels, mean, std, rescaling, resampling)
                              -> VideoInput   (the same, and the config's number of frames)
    tokenizer_config.json     -> TextInput    (longest input, in tokens)

Without these files the config decides: its `image_size` with mean and deviation 0.5, or its
`max_position_embeddings`.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from fedpeft.core.errors import ModelError
from fedpeft.core.text import plain
from fedpeft.models.families import Family
from fedpeft.models.loaded import ImageInput, PadTokens, TextInput, VideoInput
from fedpeft.models.reading import read_object

_RESAMPLE = {0: "nearest", 1: "bicubic", 2: "bilinear", 3: "bicubic", 4: "bilinear", 5: "bicubic"}
"""Filter number of image libraries -> name; a missing filter is replaced by a similar one."""

_ANY_LENGTH = -1
"""What the config of a model without a limit says (XLNet)."""
_UNLIMITED = 10**9
"""A tokenizer without a limit states a larger number than this."""
_MOST = 2**24
"""Largest size in pixels, frames or positions."""


def image_input(
    config: object, family: Family, folder: Path | None, *, file: str = "preprocessor_config.json"
) -> ImageInput:
    """Describe the images that a model takes.

    The size in the processor's file is used only if the model accepts any size: otherwise the
    position embeddings belong to the config's `image_size`.

    Args:
      config: config of the model; its `image_size` and `num_channels` are read if present.
      family: family of the model.
      folder: folder with the processor's file, if there is one.
      file: name of the processor's file.

    Raises:
      ModelError: if the file's mean or deviation does not fit the model's channels.
    """
    found = _read(folder, file)
    config = getattr(config, "vision_config", None) or config  # a tower beside one for texts
    own = getattr(config, "image_size", None)
    place, settings = str(folder / file if folder else file), _settings_of(folder)
    size = _processor_size(found, place) if own is None or family.any_size else None
    height, width = size or _pair(own if own is not None else 224, f"{settings}: image_size")
    channels = _whole(getattr(config, "num_channels", 3), f"{settings}: num_channels")
    normalise = bool(found.get("do_normalize", True))
    mean = found.get("image_mean", 0.5) if normalise else 0.0
    std = found.get("image_std", 0.5) if normalise else 1.0
    rescale = found.get("rescale_factor", 1 / 255) if found.get("do_rescale", True) else 1.0
    means = _per_channel(mean, channels, f"{place}: image_mean")
    deviations = _per_channel(std, channels, f"{place}: image_std")
    if not all(number > 0 for number in deviations):
        raise ModelError(
            f"{place}: image_std: found {deviations}; numbers above 0 are expected: correct it, or "
            "fetch the model again"
        )
    return ImageInput(
        height=height,
        width=width,
        channels=channels,
        mean=means,
        std=deviations,
        rescale=_number(rescale, f"{place}: rescale_factor"),
        resample=_RESAMPLE.get(
            int(_number(found.get("resample", 2), f"{place}: resample")), "bilinear"
        ),
    )


def video_input(config: object, family: Family, folder: Path | None) -> VideoInput:
    """Describe the clips that a model takes: `num_frames` frames, each an image.

    Args:
      config: config of the model, with its frames, tubelets, size and patches.
      family: family of the model.
      folder: with `preprocessor_config.json` or `video_preprocessor_config.json`, if there is one.

    Raises:
      ModelError: if the frames are no multiple of the tubelet, or the size of the patch.
    """
    own_file = "video_preprocessor_config.json"
    has_own = folder is not None and os.path.lexists(folder / own_file)
    found = own_file if has_own else "preprocessor_config.json"
    picture = image_input(config, family, folder, file=found)
    where = _settings_of(folder)
    frames, tubelet = (
        _whole(getattr(config, name, 1), f"{where}: {name}")
        for name in ("num_frames", "tubelet_size")
    )
    patch = _pair(getattr(config, "patch_size", 1), f"{where}: patch_size")
    if frames % tubelet:
        raise ModelError(
            f"{where}: num_frames is {frames} and tubelet_size {tubelet}; the frames must be a "
            "multiple of the tubelet: correct the config"
        )
    if picture.height % patch[0] or picture.width % patch[1]:
        raise ModelError(
            f"{where}: image_size is {picture.height} x {picture.width} and patch_size "
            f"{patch[0]} x {patch[1]}; the size must be a multiple of the patch: correct the config"
        )
    return VideoInput(frames, picture)


def text_input(
    config: object,
    source: str | Path,
    padding: PadTokens | None = None,
    *,
    places: int | None = None,
    reserved: int = 0,
) -> TextInput:
    """Describe the texts that a model takes.

    Args:
      config: config of the model.
      source: folder or hub id of its tokenizer, or "" if there is none.
      padding: the tokens that the model and its config offer for padding.
      places: rows of its table of positions; None where it has none.
      reserved: how many of them no token takes.

    Raises:
      ModelError: if the config or the tokenizer's file allow no token at all.
    """
    positions = getattr(config, "max_position_embeddings", None)
    if isinstance(getattr(type(config), "max_position_embeddings", None), property):
        positions = None if positions == -1 else positions  # XLNet says so that it has no limit
    folder = source if isinstance(source, Path) else None
    limits = [] if places is None else [places - reserved]
    if positions is not None and positions != _ANY_LENGTH:
        where = f"{_settings_of(folder)}: max_position_embeddings"
        limits.append(_whole(positions, where) - reserved)
    limits = limits or [512]
    found = _read(folder, "tokenizer_config.json")
    where = f"{source}/tokenizer_config.json: model_max_length"
    stated = _number(found.get("model_max_length", _UNLIMITED), where)
    if stated < _UNLIMITED:
        limits.append(_whole(int(stated), where))
    if min(limits) < 1:
        raise ModelError(
            f"{_settings_of(folder)}: max_position_embeddings: found {positions}; this model needs "
            f"more than {reserved}: correct it, or fetch the model again"
        )
    return TextInput(str(source), min(limits), padding or PadTokens())


def _read(folder: Path | None, name: str) -> Mapping[str, object]:
    file = folder / name if folder is not None else None
    return read_object(file) if file is not None and os.path.lexists(file) else {}


def _settings_of(folder: Path | None) -> str:
    """Return the place of a model's config, for messages."""
    return "the model's config" if folder is None else str(folder / "config.json")


def _processor_size(found: Mapping[str, object], place: str) -> tuple[int, int] | None:
    """Return height and width after the processor's resize and crop; None if not stated."""
    if found.get("do_center_crop") and found.get("crop_size") is not None:
        return _pair(found["crop_size"], f"{place}: crop_size")
    return None if found.get("size") is None else _pair(found["size"], f"{place}: size")


def _pair(size: object, where: str) -> tuple[int, int]:
    """Parse one of the forms 224, [224, 224], {height, width}, {shortest_edge}."""
    if isinstance(size, Mapping):
        edge = size.get("shortest_edge", size.get("longest_edge"))
        size = [size.get("height", edge), size.get("width", edge)]
    if not (isinstance(size, Sequence) and not isinstance(size, str) and len(size) == 2):
        size = [size, size]
    return _whole(size[0], where), _whole(size[1], where)


def _per_channel(value: object, channels: int, where: str) -> tuple[float, ...]:
    values = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    numbers = tuple(_number(each, where) for each in values)
    numbers = numbers * channels if len(numbers) == 1 else numbers
    if len(numbers) != channels:
        raise ModelError(
            f"{where}: has {len(numbers)} numbers, the model takes {channels} channels; "
            "give one number for each channel"
        )
    return numbers


def _whole(value: object, where: str) -> int:
    """Return a whole number from 1 to 2^24."""
    number = _number(value, where)
    if number != int(number) or not 1 <= number <= _MOST:
        raise ModelError(
            f"{where}: found {plain(repr(value), 60)}; a whole number from 1 to {_MOST:,} is "
            "expected: correct it, or fetch the model again"
        )
    return int(number)


def _number(value: object, where: str) -> float:
    """Return a number that is finite."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        with contextlib.suppress(OverflowError):
            if math.isfinite(number := float(value)):
                return number
    raise ModelError(
        f"{where}: {plain(repr(value), 60)} is not a number; correct it, or fetch the model again"
    )
