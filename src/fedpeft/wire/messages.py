"""Messages: a payload as the bytes that are sent, and counted.

    8 bytes length | JSON header: names, types, shapes, notes | tensors        (safetensors)

Both directions and every engine use this one encoding, so a count of bytes is a count of what is
sent. A flat delta costs about a hundred bytes of framing.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping

import safetensors.torch
from safetensors import SafetensorError
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
    """Decode what `encode` made, into tensors and notes.

    Raises:
      DeltaMismatchError: if the bytes are not a whole message.
    """
    try:
        (length,) = struct.unpack("<Q", blob[:8])
        header = json.loads(blob[8 : 8 + length])
        tensors = safetensors.torch.load(blob)
    except (SafetensorError, struct.error, ValueError) as error:
        raise DeltaMismatchError(
            f"message of {len(blob)} bytes cannot be decoded: {error}. "
            "It was cut short or is not a message of this package"
        ) from error
    return tensors, dict(header.get("__metadata__", {}))


def encoded_size(payload: Payload, notes: Mapping[str, str] | None = None) -> int:
    """Return the length of `encode(payload, notes)` in bytes; works on the `meta` device too."""
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
"""The type codes of safetensors, in the order in which tensors stand in a message."""

_RANKS = {dtype: rank for rank, dtype in enumerate(_CODES)}


def _order(item: tuple[str, Tensor]) -> tuple[int, bytes]:
    """Order tensors as a message does: by type, then by name."""
    return _RANKS[str(item[1].dtype)], item[0].encode()
