"""The header of a safetensors file or message, written so that equal content is equal bytes.

The library writes the notes of a header in an order that differs from call to call.
"""

from __future__ import annotations

import json


def with_sorted_notes(header: bytes) -> bytes:
    """Return a header with its notes sorted by name, as long as before.

    Args:
      header: JSON, padded by spaces.
    """
    table = json.loads(header)
    table["__metadata__"] = dict(sorted(table["__metadata__"].items()))
    text = json.dumps(table, separators=(",", ":"), ensure_ascii=False).encode()
    return text.ljust(len(header))
