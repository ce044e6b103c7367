"""The batches of a pass: those of several clients, each in its own order, side by side.

    client 0   [B_0, ...]  ┐
    client 1   [B_1, ...]  ├──> [G * B, ...], weight [G, B]
    client 2   [B_2, ...]  ┘

Smaller batches are filled up with their first row, at weight 0; texts are padded to the longest.

Legend: G clients of a pass, B examples of the largest batch, T tokens.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedpeft.client.batches import Rows, dropout_keys, take_batch
from fedpeft.client.settings import LocalSettings
from fedpeft.client.steps import turn_steps
from fedpeft.client.turns import ClientTurn
from fedpeft.core.errors import DataError
from fedpeft.models.tasks import Batch

_AHEAD_BYTES = 4 * 2**20
_MASK, _TOKENS, _LABELS = "attention_mask", "input_ids", "labels"


@dataclass(frozen=True)
class ClientBatch:
    """One batch of one client.

    Attributes:
      tensors: the batch; {} for one without examples.
      keys_B: dropout keys, one per example.
    """

    tensors: Batch
    keys_B: Tensor


@dataclass(frozen=True)
class Pass:
    """One batch of each of several clients.

    Attributes:
      tensors: the batch, [G * B, ...], client by client.
      keys: dropout keys, [G * B].
      weight_GB: 1 for an example, 0 for a filler row; None if there are no filler rows.
    """

    tensors: Batch
    keys: Tensor
    weight_GB: Tensor | None


@dataclass(frozen=True)
class ClientStep:
    """One step of one client.

    Attributes:
      batches: the batches whose gradients make the step, one or more.
      last: whether the step belongs to the last epoch, whose loss is reported.
      scale: factor on the learning rate.
    """

    batches: Sequence[ClientBatch]
    last: bool
    scale: float


def client_steps(turn: ClientTurn, settings: LocalSettings) -> Iterator[ClientStep]:
    """Yield a client's steps in the order of training one by one, decoded some steps ahead.

    The turn is one `with_root`.
    """
    ahead = 1
    for epoch, steps in itertools.groupby(turn_steps(turn, settings), lambda step: step.epoch):
        while some := list(itertools.islice(steps, ahead)):
            rows = [part for step in some for part in step.batches]
            every = np.concatenate(rows)
            together = take_batch(turn, every, epoch, "cpu") if len(every) else {}
            ahead = max(1, _AHEAD_BYTES * len(some) // max(1, _bytes(together)))
            cut = _cut(together, rows)
            for step in some:
                batches = [
                    ClientBatch(next(cut), dropout_keys(turn, part, step.number))
                    for part in step.batches
                ]
                yield ClientStep(batches, step.last, step.scale)


def join(parts: Sequence[ClientBatch], pad_id: int) -> Pass:
    """Concatenate batches of several clients.

    Args:
      parts: one batch of each client.
      pad_id: padding token of texts.

    Raises:
      DataError: if the clients' tensors cannot be padded to one shape.
    """
    sizes = [len(part.keys_B) for part in parts]
    most = max(sizes)
    widths = {part.tensors[_MASK].shape[1] for part in parts if _MASK in part.tensors}
    longest = max(widths) if len(widths) > 1 else None
    tensors = {}
    for name in parts[0].tensors:
        fill = {_TOKENS: pad_id, _LABELS: -100}.get(name, 0)
        rows = [_filled(part.tensors[name], most) for part in parts]
        if longest is not None:
            rows = [
                _lengthened(name, value, part, longest, fill)
                for value, part in zip(rows, parts, strict=True)
            ]
        tensors[name] = torch.cat(_checked(name, rows))
    keys = torch.cat([_filled(part.keys_B, most) for part in parts])
    if min(sizes) == most:
        return Pass(tensors, keys, None)
    weight_GB = (torch.arange(most) < torch.tensor(sizes)[:, None]).float()
    return Pass(tensors, keys, weight_GB)


def split_by_size(sizes: Sequence[int], waste: float = 1.15) -> list[list[int]]:
    """Divide clients into passes of at most `waste` times as many rows as they have examples.

    Args:
      sizes: batch size of each client, >= 1.
      waste: rows with filler rows over rows without, >= 1.

    Returns:
      The positions of each pass's clients, largest batches first; one list if one pass is enough.
    """
    order = sorted(range(len(sizes)), key=lambda i: -sizes[i])
    if not order or sizes[order[0]] * len(sizes) <= waste * sum(sizes):
        return [list(range(len(sizes)))] if order else []
    parts: list[list[int]] = []
    for i in order:
        if parts:
            rows = sum(sizes[j] for j in parts[-1]) + sizes[i]
            if sizes[parts[-1][0]] * (len(parts[-1]) + 1) <= waste * rows:
                parts[-1].append(i)
                continue
        parts.append([i])
    return parts


def _cut(together: Batch, rows: Sequence[Rows]) -> Iterator[Batch]:
    """Cut tensors of several batches into batches; columns with padding only are removed."""
    start = 0
    for part in rows:
        if not len(part):
            yield {}
            continue
        batch = {name: value[start : start + len(part)] for name, value in together.items()}
        start += len(part)
        yield _trimmed(batch) if len(rows) > 1 and _MASK in batch else batch


def _trimmed(batch: Batch) -> Batch:
    width = batch[_MASK].shape[1]
    longest = int(batch[_MASK].sum(1).max())
    return {
        name: value[:, :longest] if _of_tokens(name, value, width) else value
        for name, value in batch.items()
    }


def _filled(value: Tensor, rows: int) -> Tensor:
    """Append copies of the first row up to a number of rows."""
    lacking = rows - len(value)
    if not lacking:
        return value
    return torch.cat([value, value[:1].expand(lacking, *value.shape[1:])])


def _of_tokens(name: str, value: Tensor, width: int) -> bool:
    """Whether the second axis of a tensor is that of the tokens; of labels, if they are whole."""
    whole = name != _LABELS or not value.is_floating_point()
    return whole and value.dim() > 1 and value.shape[1] == width


def _lengthened(name: str, value: Tensor, part: ClientBatch, longest: int, fill: int) -> Tensor:
    """Pad a tensor on the right, along the tokens, if it is as wide as the text's mask."""
    width = part.tensors[_MASK].shape[1]
    if not _of_tokens(name, value, width) or width == longest:
        return value
    sides = (0, 0) * (value.dim() - 2) + (0, longest - width)
    return torch.nn.functional.pad(value, sides, value=fill)


def _checked(name: str, values: list[Tensor]) -> list[Tensor]:
    shapes = sorted({tuple(value.shape) for value in values})
    if len(shapes) > 1:
        raise DataError(
            f"clients of one pass have batches {name!r} of shapes {shapes[:3]}, which cannot be "
            "padded to one; set engine.clients_per_pass = 1"
        )
    return values


def _bytes(batch: Batch) -> int:
    return sum(value.numel() * value.element_size() for value in batch.values())
