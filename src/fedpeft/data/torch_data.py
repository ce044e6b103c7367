"""Any torch data set as examples, for models and data of the user's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset, TensorDataset

from fedpeft.core import seeds
from fedpeft.core.errors import DataError
from fedpeft.data.examples import Federated
from fedpeft.data.partition import partition
from fedpeft.data.schemes import PartitionRequest, row_of
from fedpeft.models.tasks import Batch

__all__ = ["TorchExamples", "default_collate", "from_torch"]

Clients: TypeAlias = Mapping[str, Sequence[int]] | PartitionRequest
Collate: TypeAlias = Callable[[Sequence[object]], Batch]


@dataclass(frozen=True)
class TorchExamples:
    """A torch data set with a length, collated by a function.

    Attributes:
      dataset: must be picklable, as must `collate`, where several workers are used.
      collate: makes a batch of samples.
    """

    dataset: Dataset[object]
    collate: Collate

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]  # Dataset does not declare its length

    def batch(self, indices: Sequence[int], *, seed: int | None) -> Batch:
        """Collate; see `ExampleSet.batch`.

        Random transforms of the data set draw from global generators: these are seeded for each
        sample, so that a sample does not depend on its neighbours, and restored.
        """
        if _is_fixed(self.dataset):
            return self.collate([self.dataset[int(index)] for index in indices])
        root = 0 if seed is None else seed
        samples = []
        for index in indices:
            with seeds.isolated(seeds.derive(root, "sample", int(index))):
                samples.append(self.dataset[int(index)])
        return self.collate(samples)


def from_torch(
    train: Dataset[object],
    test: Dataset[object],
    clients: Clients,
    *,
    collate: Collate | None = None,
    labels: Sequence[int] | None = None,
) -> Federated:
    """Make a federated data set of torch data sets.

    Args:
      train: has a length and gives samples by index.
      test: the server's test data.
      clients: rows of `train` by client name, or a partition to draw.
      collate: samples -> batch, a mapping of tensors with `labels`; None is `default_collate`.
      labels: class of each training sample. None means that they are read from the samples where
        these are classified (`labels` is one whole number a sample).

    Raises:
      DataError: if a row is not in `train` or is given twice, or the partition is not possible.
    """
    examples = TorchExamples(train, collate or default_collate)
    known = _labels(examples) if labels is None else np.asarray(labels, np.int64)
    if known is not None and len(known) != len(examples):
        raise DataError(f"from_torch: {len(known)} labels for {len(examples)} training samples")
    return Federated(
        train=examples,
        test=TorchExamples(test, collate or default_collate),
        clients=_clients(clients, known, len(examples)),
        num_labels=int(known.max(initial=-1)) + 1 if known is not None else None,
        label_names=None,
        labels=known,
        name=type(train).__name__,
        test_clients={},
        augmented=not _is_fixed(train),
    )


def default_collate(samples: Sequence[object]) -> Batch:
    """Stack samples: dictionaries key by key, pairs (x, y) as `inputs` and `labels`.

    Raises:
      DataError: if samples are neither.
    """
    first = samples[0]
    if isinstance(first, Mapping):
        return {str(key): _stack([s[key] for s in samples]) for key in first}  # type: ignore[index]  # all alike
    if isinstance(first, Sequence) and len(first) == 2:
        inputs, labels = zip(*samples, strict=True)
        return {"inputs": _stack(inputs), "labels": _stack(labels)}
    raise DataError(
        f"from_torch: a sample is {type(first).__name__}; allowed are dictionaries of tensors and "
        "pairs (x, y): pass collate= for anything else"
    )


def _stack(values: Sequence[object]) -> Tensor:
    return torch.stack([torch.as_tensor(value) for value in values])


def _labels(examples: TorchExamples) -> npt.NDArray[np.int64] | None:
    """Read the classes off the samples; None where they are not one whole number each."""
    found = []
    with seeds.isolated(0):
        for index in range(len(examples)):
            labels = examples.collate([examples.dataset[index]]).get("labels")
            if labels is None or labels.is_floating_point() or labels.numel() != 1:
                return None
            found.append(int(labels))
    return np.array(found, np.int64)


def _clients(
    clients: Clients, labels: npt.NDArray[np.int64] | None, count: int
) -> Mapping[str, npt.NDArray[np.int64]]:
    if isinstance(clients, PartitionRequest):
        row = row_of(clients)
        if labels is None and row is not None and row.needs == "labels":
            raise DataError(
                f"from_torch: partition {clients.scheme!r} needs labels: pass labels=, or clients "
                "as a mapping from names to rows"
            )
        return partition(np.zeros(count, np.int64) if labels is None else labels, clients)
    parts = {str(name): np.asarray(rows, np.int64) for name, rows in clients.items()}
    rows = np.concatenate([np.empty(0, np.int64), *parts.values()])
    if len(rows) and (rows.min() < 0 or rows.max() >= count):
        raise DataError(f"from_torch: clients name rows {rows.min()} to {rows.max()} of {count}")
    if len(np.unique(rows)) < len(rows):
        raise DataError("from_torch: a row of the training data belongs to two clients")
    if not all(len(part) for part in parts.values()) or not parts:
        raise DataError("from_torch: every client needs a row, and there must be a client")
    return parts


def _is_fixed(dataset: Dataset[object]) -> bool:
    """Whether samples are certainly the same every time."""
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    return isinstance(dataset, TensorDataset)
