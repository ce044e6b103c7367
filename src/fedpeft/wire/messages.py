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
from dataclasses import dataclass
from typing import Any, TypeGuard

import safetensors.torch
import torch
from torch import Tensor

from fedpeft.client.turns import Payload
from fedpeft.core.errors import DeltaMismatchError
from fedpeft.core.tensor_header import with_sorted_notes
from fedpeft.core.text import plain

LONGEST_HEADER = 32 * 1024
"""Largest header of a message whose tensors are not known beforehand, in bytes."""

_MOST_AXES = 8


def encode(payload: Payload, notes: Mapping[str, str] | None = None) -> bytes:
    """Encode tensors and short notes (such as a weight) as bytes; equal content is equal bytes."""
    tensors = {name: tensor.contiguous() for name, tensor in payload.items()}
    blob: bytes = safetensors.torch.save(tensors, dict(notes) if notes else None)
    if len(notes or ()) < 2:
        return blob
    end = 8 + int.from_bytes(blob[:8], "little")
    return b"".join((blob[:8], with_sorted_notes(blob[8:end]), memoryview(blob)[end:]))


def decode(
    blob: bytes, *, most_header: int = LONGEST_HEADER
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Decode the bytes of `encode` into tensors and notes.

    The tensors are views of the bytes, so that combining a thousand replies costs no more than
    reading them. They must not be written to: copy a tensor before changing it in place.

    A message may come from anywhere: types and sizes are compared with its length before anything
    is made, so a message of n bytes takes memory in proportion to n.

    Args:
      blob: the message.
      most_header: largest header that is read, in bytes.

    Raises:
      DeltaMismatchError: if the bytes are not a whole message.
    """
    try:
        (length,) = struct.unpack_from("<Q", blob)
        most = min(len(blob) - 8, most_header)
        if length > most:
            raise ValueError(f"its header claims {length} bytes; at most {most} are possible")
        text = blob[8 : 8 + length].decode()
        header = json.loads(text, object_pairs_hook=_table, parse_constant=_no_number)
        notes = _notes(header.pop("__metadata__", {}))
        return _views(header, blob, 8 + length), notes
    except Exception as error:  # a header can be wrong in any way, nested too deeply among them
        raise DeltaMismatchError(
            f"message of {len(blob)} bytes cannot be decoded: {plain(error, 200)}. "
            "It was cut short or is not a message of this package"
        ) from error


def _table(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object as a dict.

    Raises:
      ValueError: if a name stands in it twice.
    """
    table = dict(pairs)
    if len(table) < len(pairs):
        raise ValueError("a name stands twice in its header")
    return table


def _no_number(name: str) -> float:
    raise ValueError(f"its header holds {name}")


def _notes(notes: object) -> dict[str, str]:
    """Check that notes are texts.

    Raises:
      ValueError: if they are not.
    """
    if not isinstance(notes, dict) or not all(isinstance(each, str) for each in notes.values()):
        raise ValueError("its notes are not texts")
    return notes


def _views(header: Mapping[str, Any], blob: bytes, start: int) -> dict[str, Tensor]:
    """Return a tensor for each entry of a header, as a view of the message's bytes.

    Raises:
      ValueError: if the entries do not cover all bytes exactly once.
    """
    _silence_warning()
    entries = {name: _entry(name, each) for name, each in header.items()}
    tensors, offset = {}, 0
    for name, entry in sorted(entries.items(), key=lambda item: item[1].begin):
        size = math.prod(entry.shape)
        fits = entry.begin == offset and entry.end - offset == size * entry.dtype.itemsize
        if not fits or entry.end > len(blob) - start or (start + offset) % entry.dtype.itemsize:
            raise ValueError(
                f"tensor {name!r} of shape {list(entry.shape)} does not fit bytes {entry.begin} to "
                f"{entry.end}"
            )
        tensors[name] = _view(blob, entry.dtype, size, start + offset).view(entry.shape)
        offset = entry.end
    if start + offset != len(blob):
        raise ValueError(f"found {len(blob) - start} bytes of tensors, its header claims {offset}")
    return tensors


@dataclass(frozen=True)
class _Entry:
    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    end: int


def _entry(name: str, entry: object) -> _Entry:
    """Check an entry of a header by itself.

    Raises:
      ValueError: if it is not a type, a shape and two offsets.
    """
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"tensor {name!r} has no type, shape and offsets")
    code, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(code, str) or code not in _TYPES:
        raise ValueError(f"tensor {name!r} has type {plain(code, 20)}")
    if not _counts(shape) or not _counts(offsets) or len(shape) > _MOST_AXES or len(offsets) != 2:
        raise ValueError(f"tensor {name!r} of shape {plain(shape, 40)} does not fit its bytes")
    return _Entry(_TYPES[code], tuple(shape), *offsets)


def _counts(value: object) -> TypeGuard[list[int]]:
    """Whether a value is a list of whole numbers from 0 to 2**53."""
    return isinstance(value, list) and all(
        type(each) is int and 0 <= each <= 2**53 for each in value
    )


@functools.cache
def _silence_warning() -> None:
    """Trigger and suppress torch's warning, given once, that views of bytes are not writable."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.frombuffer(bytes(1), dtype=torch.uint8)


def _view(blob: bytes, dtype: torch.dtype, count: int, offset: int) -> Tensor:
    if count == 0:
        return torch.empty(0, dtype=dtype)
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
