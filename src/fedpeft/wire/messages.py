"""Messages: the encoding of a payload as bytes, which are sent and counted.

    8 bytes length | JSON header: names, types, shapes, notes | tensors        (safetensors)

Both directions and every engine use this one encoding, so counts of bytes are exact. The header of
a flat delta takes about a hundred bytes.
"""

from __future__ import annotations

import functools
import json
import math
import struct
import warnings
from collections.abc import Mapping
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from fedpeft.client.turns import Payload
from fedpeft.core.errors import DeltaMismatchError

__all__ = ["decode", "encode", "encoded_size"]


def encode(payload: Payload, notes: Mapping[str, str] | None = None) -> bytes:
    """Encode tensors and short notes (such as a weight) as bytes."""
    tensors = {name: tensor.contiguous() for name, tensor in payload.items()}
    blob: bytes = safetensors.torch.save(tensors, dict(notes) if notes else None)
    return blob


def decode(blob: bytes) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Decode the bytes of `encode` into tensors and notes.

    The tensors are views of the bytes, so that combining a thousand replies costs no more than
    reading them. They must not be written to: copy a tensor before changing it in place.

    Raises:
      DeltaMismatchError: if the bytes are not a whole message.
    """
    try:
        (length,) = struct.unpack_from("<Q", blob)
        if length > len(blob) - 8:
            raise ValueError(f"its header claims {length} bytes")
        header = json.loads(blob[8 : 8 + length])
        notes = header.pop("__metadata__", {})
        tensors = _views(header, blob, 8 + length)
        return tensors, {str(name): str(text) for name, text in notes.items()}
    except (struct.error, ValueError, TypeError, LookupError, AttributeError) as error:
        raise DeltaMismatchError(
            f"message of {len(blob)} bytes cannot be decoded: {error}. "
            "It was cut short or is not a message of this package"
        ) from error


def _views(header: Mapping[str, Any], blob: bytes, start: int) -> dict[str, Tensor]:
    """Return a tensor for each entry of a header, as a view of the message's bytes.

    Raises:
      ValueError: if the entries do not cover all bytes exactly once.
    """
    _silence_warning()
    tensors, offset = {}, 0
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"][0]):
        dtype, shape = _TYPES[entry["dtype"]], entry["shape"]
        begin, end = entry["data_offsets"]
        size = math.prod(shape)
        fits = begin == offset and end - begin == size * dtype.itemsize
        if not fits or not all(isinstance(axis, int) and axis >= 0 for axis in shape):
            raise ValueError(
                f"tensor {name!r} of shape {shape} does not fit bytes {begin} to {end}"
            )
        offset = end
        tensors[name] = _view(blob, dtype, size, start + begin).view(shape)
    if start + offset != len(blob):
        raise ValueError(f"found {len(blob) - start} bytes of tensors, its header claims {offset}")
    return tensors


@functools.cache
def _silence_warning() -> None:
    """Trigger and suppress torch's warning, given once, that views of bytes are not writable."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.frombuffer(bytes(1), dtype=torch.uint8)


def _view(blob: bytes, dtype: torch.dtype, count: int, offset: int) -> Tensor:
    if count == 0:
        return torch.empty(0, dtype=dtype)
    if offset + count * dtype.itemsize > len(blob):
        raise ValueError("it ends too early")
    return torch.frombuffer(blob, dtype=dtype, count=count, offset=offset)


def encoded_size(payload: Payload, notes: Mapping[str, str] | None = None) -> int:
    """Return the length of `encode(payload, notes)` in bytes, from shapes and types alone."""
    data = sum(tensor.numel() * tensor.element_size() for tensor in payload.values())
    header: dict[str, object] = {"__metadata__": dict(notes)} if notes else {}
    offset = 0
    for name, tensor in sorted(payload.items(), key=_order):
        end = offset + tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": _CODES[str(tensor.dtype)],
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = len(json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode())
    return 8 + (text + 7) // 8 * 8 + data


_CODES = {
    "torch.int64": "I64",
    "torch.float64": "F64",
    "torch.float32": "F32",
    "torch.int32": "I32",
    "torch.bfloat16": "BF16",
    "torch.float16": "F16",
    "torch.int8": "I8",
    "torch.uint8": "U8",
}
"""The type codes of safetensors, in the order of tensors in a message."""

_TYPES = {code: getattr(torch, name.removeprefix("torch.")) for name, code in _CODES.items()}
_RANKS = {dtype: rank for rank, dtype in enumerate(_CODES)}


def _order(item: tuple[str, Tensor]) -> tuple[int, bytes]:
    """Return the sort key of a tensor in a message: its type, then its name."""
    return _RANKS[str(item[1].dtype)], item[0].encode()
