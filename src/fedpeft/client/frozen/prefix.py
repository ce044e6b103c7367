"""Caching of frozen prefixes: the features of examples come from a table filled on demand.

    batch(rows) ──absent──> prefix on the chunk of that client ──> table ──> features, mask, labels
                └─stored─────────────────────────────────────────────^

Clients train, and the server evaluates, from the features on. A chunk is up to 64 rows of one
client, in the client's order (in a test set: 64 consecutive rows). Chunks depend on neither batches
nor workers, so that every feature is the same to the bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fedpeft.client.batches import to_device
from fedpeft.client.frozen.feature_file import FeatureFile, bytes_of
from fedpeft.client.settings import LocalSettings, autocast
from fedpeft.data.examples import ExampleSet, HasLengths
from fedpeft.data.tensors import TextExamples
from fedpeft.models.bypass import PREFIX, apart
from fedpeft.models.tasks import Batch
from fedpeft.tuning.prefix import Split, features, rest_batch
from fedpeft.tuning.tuned import TunedModel

Ints = npt.NDArray[np.int64]

CHUNK = 64
"""Number of examples that pass through the prefix together."""

_SCANNED = 1024


@dataclass(frozen=True)
class Layout:
    """The place of each example's features in a `FeatureFile`.

    Attributes:
      record_N: record of each example; -1 if its features are not stored.
      starts: first row of each record, as in `fedpeft.client.frozen.feature_file`.
      rows: example of each record, chunk after chunk.
      chunk_R: first record of each record's chunk.
    """

    record_N: Ints
    starts: Ints
    rows: Ints
    chunk_R: Ints

    def bytes(self, width: int) -> int:
        """Return the size of the file in bytes, with `width` values per token."""
        return bytes_of(len(self.rows), int(self.starts[-1]), width)


@dataclass(frozen=True)
class Kept:
    """A table of stored features with its layout.

    Attributes:
      layout: the place of each example's features.
      table: the table with that layout.
    """

    layout: Layout
    table: FeatureFile


def lay_out(tokens_N: Ints, groups: Iterable[Ints], *, width: int, budget: int) -> Layout:
    """Decide whose features are stored: group after group, up to the first that does not fit.

    Args:
      tokens_N: number of tokens of each example; 1 if an example has one vector.
      groups: the examples of each client, or of a test set.
      width: values per token.
      budget: largest size of the table, in bytes.
    """
    every = [np.empty(0, np.int64), *groups]
    sizes = np.fromiter((len(rows) for rows in every), np.int64, len(every))
    rows, ends = np.concatenate(every), sizes.cumsum()
    starts = np.concatenate([np.zeros(1, np.int64), tokens_N[rows].cumsum()])
    fitting = int(np.searchsorted(bytes_of(ends, starts[ends], width), budget, side="right"))
    count = int(ends[max(fitting, 1) - 1])
    records = np.arange(count)
    place_in_group = records - np.repeat(ends - sizes, sizes)[:count]
    record_N = np.full(len(tokens_N), -1, np.int64)
    record_N[rows[:count]] = records
    return Layout(record_N, starts[: count + 1], rows[:count], records - place_in_group % CHUNK)


def token_counts(examples: ExampleSet, split: Split) -> Ints | None:
    """Return the number of tokens whose features each example needs, int64 [N].

    For texts, these are counted in their masks. None if texts are padded on the left: then a
    feature depends on the rest of its batch.

    Args:
      examples: the examples; texts are all read, without augmentation.
      split: the cut; one vector per example counts as one token.
    """
    if not split.text:
        return np.full(len(examples), split.length, np.int64)
    counts = [np.empty(0, np.int64)]
    for start in range(0, len(examples), _SCANNED):
        batch = examples.batch(range(start, min(start + _SCANNED, len(examples))), seed=None)
        mask_BT = batch.get("attention_mask", torch.ones_like(batch["input_ids"]))
        if bool((mask_BT[:, 1:] > mask_BT[:, :-1]).any()):
            return None
        counts.append(mask_BT.sum(1).numpy().astype(np.int64))
    return np.concatenate(counts)


def prefix_of(
    tuned: TunedModel, split: Split, settings: LocalSettings
) -> Callable[[Batch], Tensor]:
    """Return the prefix as a function: batch -> its features, float32 on the CPU."""
    whole = replace(tuned, model=apart(tuned.model, split.skipped))

    def run(batch: Batch) -> Tensor:
        with autocast(settings):
            return features(whole, split, to_device(batch, settings.device)).float().cpu()

    return run


class PrefixExamples:
    """Examples for the rest of a model, with features that are computed at their first use.

    Args:
      inner: the original examples.
      split: the cut of the model.
      prefix: function from a batch of `inner` to its features.
      kept: the table that stores the features.
      seed: seed of the augmentation; None for none.
    """

    def __init__(
        self,
        inner: ExampleSet,
        split: Split,
        prefix: Callable[[Batch], Tensor],
        kept: Kept,
        seed: int | None = None,
    ) -> None:
        self.inner = inner
        self._split, self._prefix, self._seed = split, prefix, seed
        self._layout, self._table = kept.layout, kept.table

    def __len__(self) -> int:
        return len(self.inner)

    def batch(self, indices: Sequence[int], *, seed: int | None) -> Batch:
        """Collate; see `ExampleSet.batch`. `seed` is ignored: these examples have their own."""
        rows = np.asarray(indices, np.int64)
        records = self._layout.record_N[rows]
        if not len(rows) or (records < 0).any():
            batch = self.inner.batch(rows.tolist(), seed=self._seed)
            return rest_batch(self._split, batch, self._prefix(batch))
        for first in np.unique(self._layout.chunk_R[self._table.missing(records)]).tolist():
            self._fill(first)
        return self._stored(rows, records)

    def lengths(self, indices: Ints) -> Ints | None:
        """Return the number of tokens of each text; see `HasLengths`."""
        return self.inner.lengths(indices) if isinstance(self.inner, HasLengths) else None

    def _fill(self, first: int) -> None:
        """Compute and store a whole chunk."""
        layout = self._layout
        records = np.flatnonzero(layout.chunk_R[first : first + CHUNK] == first) + first
        batch = self.inner.batch(layout.rows[records].tolist(), seed=self._seed)
        found = self._prefix(batch).numpy()
        labels = batch["labels"].numpy() if batch["labels"].ndim == 1 else np.zeros(len(records))
        for i, record in enumerate(records.tolist()):
            length = int(layout.starts[record + 1] - layout.starts[record])
            values = found[i, :length] if self._split.tokens else found[i : i + 1]
            self._table.put(record, int(labels[i]), values)

    def _stored(self, rows: Ints, records: Ints) -> Batch:
        """Read a batch from the table; padding, which the masks hide, gets zeros."""
        start_B = self._layout.starts[records]
        if not self._split.text:
            steps_T = np.arange(self._split.length)
            places = start_B[:, None] + steps_T if self._split.tokens else start_B
            labels_B = torch.from_numpy(self._table.labels(records))
            if isinstance(self.inner, TextExamples) and self.inner.labels is not None:
                labels_B = self.inner.labels[torch.from_numpy(rows)]  # they need not be classes
            return {"labels": labels_B, PREFIX: torch.from_numpy(self._table.rows(places))}
        batch = self.inner.batch(rows.tolist(), seed=self._seed)
        steps_T = np.arange(batch["input_ids"].shape[1])
        known_BT = steps_T < (self._layout.starts[records + 1] - start_B)[:, None]
        values_BTD = self._table.rows(np.where(known_BT, start_B[:, None] + steps_T, 0))
        values_BTD[~known_BT] = 0.0
        return rest_batch(self._split, batch, torch.from_numpy(values_BTD))


class PrefixViews:
    """Augmented examples in a fixed number n of versions: epoch e of a turn uses view e mod n.

    Args:
      views: the same examples, each time with another augmentation and its own features.
    """

    def __init__(self, views: Sequence[PrefixExamples]) -> None:
        self._views = tuple(views)

    def __len__(self) -> int:
        return len(self._views[0])

    def batch(self, indices: Sequence[int], *, seed: int | None) -> Batch:
        """Collate from the first view."""
        return self._views[0].batch(indices, seed=seed)

    def lengths(self, indices: Ints) -> Ints | None:
        """Return the number of tokens of each text; see `HasLengths`."""
        return self._views[0].lengths(indices)

    def in_epoch(self, epoch: int) -> ExampleSet:
        """Return the view of an epoch, from 0."""
        return self._views[epoch % len(self._views)]
