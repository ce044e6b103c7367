"""The batches of a client's epochs: their order, their examples, their dropout keys."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fedpeft.client.turns import ClientTurn
from fedpeft.core import seeds
from fedpeft.data.examples import in_epoch, lengths_of
from fedpeft.models.tasks import Batch

Rows = npt.NDArray[np.int64]


_WINDOW = 50
"""Batches of a window: within it, texts are sorted by their length."""


def batches(
    turn: ClientTurn,
    batch_size: int,
    epoch: int,
    whole_batches: bool = False,
    by_length: bool = False,
) -> list[Rows]:
    """Shuffle a client's positions for one epoch and cut them into batches.

    Args:
      turn: turn of the client, for its seed and number of examples.
      batch_size: examples per batch; the last batch may be smaller.
      epoch: number of the epoch, from 0.
      whole_batches: append a last batch of a single example to the previous one, because BatchNorm
        has no statistics over one example.
      by_length: put texts of similar length into a batch, where the examples have lengths: the
        shuffled epoch is sorted in windows of some batches, and its whole batches shuffled again.

    Returns:
      Positions in the client's own data, int64.
    """
    generator = seeds.generator(turn.seed, "order", epoch)
    order = torch.randperm(len(turn.data), generator=generator).numpy()
    cuts = list(range(batch_size, len(order), batch_size))
    if whole_batches and cuts and len(order) - cuts[-1] == 1:
        cuts.pop()
    lengths = lengths_of(turn.data) if by_length else None
    if lengths is None:
        return np.split(order, cuts) if len(order) else []
    windows = np.split(order, range(_WINDOW * batch_size, len(order), _WINDOW * batch_size))
    ordered = [window[np.argsort(-lengths[window], kind="stable")] for window in windows]
    parts = np.split(np.concatenate(ordered), cuts) if len(order) else []
    whole = len(parts) - 1  # the last one may be smaller, and stays where it is
    generator = seeds.generator(turn.seed, "length", epoch)
    places = torch.randperm(max(whole, 0), generator=generator).tolist()
    return [*(parts[place] for place in places), *parts[-1:]]


def take_batch(turn: ClientTurn, rows: Rows, epoch: int, device: str) -> Batch:
    """Collate examples at some positions of a client's data, with an epoch's augmentation."""
    data = turn.data
    examples = in_epoch(data.examples, epoch)
    seed = seeds.derive(turn.seed, "augment", epoch)
    return to_device(examples.batch(data.indices[rows].tolist(), seed=seed), device)


def dropout_keys(turn: ClientTurn, rows: Rows, step: int) -> Tensor:
    """Return one key per example [B], from the turn's seed, the step and the position."""
    base = seeds.derive(turn.seed, "dropout", step)
    return torch.from_numpy(rows.astype(np.int64)) * 2_654_435_761 + base


def to_device(batch: Batch, device: str) -> Batch:
    """Move a batch to a device; to a GPU through pinned memory, asynchronously."""
    if device == "cpu":
        return batch
    return {name: value.pin_memory().to(device, non_blocking=True) for name, value in batch.items()}
