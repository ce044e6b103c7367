"""Packing: the examples of each client fill as few rows of one length as they can.

    examples   |aaaaa|bbb|cc|dddd|        rows   |aaaaabbb|  |ddddcc..|        length 8

The longest are placed first, each where least room is left (best fit, decreasing). Positions begin
again with each example, and no example attends to another, so that the loss of a row is the sum of
its examples' losses.
"""

from __future__ import annotations

import bisect
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch

from fedpeft.data.tensors import TextExamples

IntArray = npt.NDArray[np.int64]


def pack_clients(
    examples: TextExamples, clients: Mapping[str, IntArray], *, length: int
) -> tuple[TextExamples, dict[str, IntArray]]:
    """Pack the examples of each client into rows of its own.

    Args:
      examples: of a language model, none longer than `length`.
      clients: client -> its examples.
      length: largest number of tokens of a row.

    Returns:
      the table of rows, and the rows of each client.
    """
    offsets = examples.offsets.numpy()
    sizes = np.diff(offsets)
    rows: list[IntArray] = []
    owned: dict[str, IntArray] = {}
    for client, own in clients.items():
        packed = [own[places] for places in pack(sizes[own].tolist(), length)]
        owned[client] = np.arange(len(rows), len(rows) + len(packed), dtype=np.int64)
        rows += packed
    order = np.concatenate([np.empty(0, np.int64), *rows])
    spans = [np.arange(offsets[i], offsets[i + 1]) for i in order]
    places = torch.from_numpy(np.concatenate([np.empty(0, np.int64), *spans]))
    positions = [np.arange(size, dtype=np.int32) for size in sizes[order]]
    lengths = [int(sizes[row].sum()) for row in rows]
    table = TextExamples(
        tokens=examples.tokens[places],
        offsets=torch.from_numpy(np.cumsum([0, *lengths], dtype=np.int64)),
        labels=None,
        pad_id=examples.pad_id,
        learnt=None if examples.learnt is None else examples.learnt[places],
        positions=torch.from_numpy(np.concatenate([np.empty(0, np.int32), *positions])),
    )
    return table, owned


def pack(sizes: Sequence[int], length: int) -> list[list[int]]:
    """Divide examples among rows.

    Args:
      sizes: tokens of each example, each at most `length`.
      length: tokens of a row.

    Returns:
      the examples of each row in ascending order; rows in the order of their first example.
    """
    rows: list[list[int]] = []
    rooms: list[tuple[int, int]] = []  # (room left, row), ascending
    for example in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        size = sizes[example]
        place = bisect.bisect_left(rooms, (size, -1))
        if place == len(rooms):
            room, row = length, len(rows)
            rows.append([])
        else:
            room, row = rooms.pop(place)
        rows[row].append(example)
        bisect.insort(rooms, (room - size, row))
    return sorted(sorted(row) for row in rows)
