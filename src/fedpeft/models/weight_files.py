"""The safetensors files of a model folder: which they are, and what their headers say.

    model.safetensors                  one file, if it is there
    model.safetensors.index.json       else {"weight_map": {tensor: file in the same folder}}

Headers are read before weights: a file that is cut, empty or lies about its size is found without
taking memory.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fedpeft.core.errors import ModelError
from fedpeft.core.text import plain
from fedpeft.models.reading import AGAIN, read_object, read_start, reading

_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_NOT_WEIGHTS = ("training_args", "optimizer", "scheduler", "rng_state", "scaler")
_OTHER = (".bin", ".pth", ".pt", ".h5", ".msgpack", ".gguf", ".onnx", ".safetensors")


@dataclass(frozen=True)
class StoredTensor:
    """A tensor as the header of its file describes it.

    Attributes:
      shape: its shape.
      kind: its type, as safetensors writes it: `F32`, `BF16`, `I64` and so on.
    """

    shape: tuple[int, ...]
    kind: str

    @property
    def is_floating(self) -> bool:
        """Whether its elements are floating-point numbers."""
        return "F" in self.kind

    @property
    def num_elements(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


def has_weights(folder: Path, *, any_format: bool) -> bool:
    """Whether a folder has files of weights, whole or not.

    Args:
      folder: with or without weights.
      any_format: also count weights of formats that are not read.
    """
    with reading(folder, "the folder cannot be listed"):
        names = [path.name for path in folder.iterdir()]
    if any_format:
        weights = [n for n in names if n.endswith(_OTHER) and not n.startswith(_NOT_WEIGHTS)]
    else:
        weights = [n for n in names if n.startswith("model") and n.endswith(".safetensors")]
    return _INDEX in names or bool(weights)


def weight_files(folder: Path) -> tuple[Path, ...]:
    """Return the files that hold a folder's weights, in the order of their names.

    Raises:
      ModelError: if there are none, or the index is broken or names a file that is not in the
        folder.
    """
    if os.path.lexists(folder / _SINGLE):
        return (folder / _SINGLE,)
    if os.path.lexists(folder / _INDEX):
        return _indexed(folder)
    with reading(folder, "the folder cannot be listed"):
        names = sorted(path.name for path in folder.iterdir() if path.suffix in _OTHER)[:5]
    shards = [name for name in names if name.startswith("model-") and name.endswith("safetensors")]
    if shards:
        raise ModelError(
            f"{folder}: has no {_INDEX}, which says what is in {', '.join(shards[:3])}; fetch that "
            "file too, or save the model again"
        )
    raise ModelError(
        f"{folder}: has no {_SINGLE} (found {names or 'no weights at all'}); pickled "
        "weights and other formats are not read: turn them into safetensors with save_pretrained, "
        "or use `fedpeft convert`"
    )


def stored_tensors(folder: Path) -> Mapping[str, StoredTensor]:
    """Read the headers of a folder's weights: name of a tensor -> its shape and type.

    Raises:
      ModelError: as `weight_files`, or if a file is not a whole safetensors file.
    """
    from safetensors import safe_open

    found: dict[str, StoredTensor] = {}
    for file in weight_files(folder):
        if not read_start(file, 1):
            raise ModelError(f"{file}: the weights cannot be read: the file is empty; {AGAIN}")
        size = file.stat().st_size
        with reading(
            file, f"the weights cannot be read: its {size:,} bytes are no whole safetensors file"
        ):
            with safe_open(file, framework="np") as tensors:
                for name in tensors.keys():  # noqa: SIM118
                    part = tensors.get_slice(name)
                    found[name] = StoredTensor(tuple(part.get_shape()), part.get_dtype())
    return found


def _indexed(folder: Path) -> tuple[Path, ...]:
    """Return the files that an index names."""
    index = folder / _INDEX
    table = read_object(index).get("weight_map")
    if not isinstance(table, dict) or not table:
        raise ModelError(
            f"{index}: weight_map: found {plain(repr(table), 60)}; a table from tensors to files "
            "is expected: fetch the model again"
        )
    for tensor, name in table.items():
        inside = isinstance(name, str) and name not in ("", ".", "..") and Path(name).name == name
        if not inside or "\0" in name:
            raise ModelError(
                f"{index}: weight_map: {plain(tensor, 60)}: found {plain(repr(name), 80)}; the "
                "name of a file in the same folder is expected: fetch the model again"
            )
    files = tuple(folder / name for name in sorted(set(table.values())))
    for file in files:
        if not os.path.lexists(file):
            raise ModelError(f"{file}: is missing, and {_INDEX} names it; fetch the model again")
        if file.suffix != ".safetensors":
            raise ModelError(
                f"{index}: weight_map: found {plain(file.name, 80)!r}; safetensors files are "
                "expected: pickled weights are not read"
            )
    return files
