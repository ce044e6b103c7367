"""Which examples of a test set a model got right, in little space: a bit for each.

    [True, False, True]  <->  {"count": 3, "right": "oA=="}       0b10100000 in base64

A thousand examples take 168 letters, so that each finished run can keep them.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray


def pack_items(right_N: NDArray[np.bool_]) -> dict[str, object]:
    """Return a boolean array [N] as JSON: `count`, and the bits, first example first, in base64.

    Example:
      >>> pack_items(np.array([True, False, True]))
      {'count': 3, 'right': 'oA=='}
    """
    return {
        "count": len(right_N),
        "right": base64.b64encode(np.packbits(right_N).tobytes()).decode("ascii"),
    }


def unpack_items(packed: Mapping[str, Any]) -> NDArray[np.bool_]:
    """Return the array [N] that `pack_items` was given.

    Raises:
      ValueError: if the number of bits is not that of the examples, or the text is no base64.

    Example:
      >>> unpack_items({"count": 3, "right": "oA=="}).tolist()
      [True, False, True]
    """
    count = packed.get("count")
    if not isinstance(count, int) or isinstance(count, bool) or count < 0:
        raise ValueError(f"items.count is {count!r}; expected is a number of examples")
    found = base64.b64decode(str(packed.get("right")), validate=True)
    if len(found) != (count + 7) // 8:
        raise ValueError(
            f"items.right has {len(found)} bytes; expected are {(count + 7) // 8}, a bit for each "
            f"of {count} examples"
        )
    return np.unpackbits(np.frombuffer(found, np.uint8), count=count).astype(bool)
