"""Any torch data set as a table of examples, for models and data of the user's own."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset

from fedpeft.core import seeds
from fedpeft.core.errors import DataError
from fedpeft.data.examples import Federated
from fedpeft.data.folders import refuse_splits_as_clients
from fedpeft.data.partition import partition
from fedpeft.data.schemes import PartitionRequest, row_of
from fedpeft.models.tasks import Batch

Rows: TypeAlias = Sequence[int] | npt.NDArray[np.int64]
Clients: TypeAlias = Mapping[str, Rows] | PartitionRequest
Source: TypeAlias = Dataset[object] | Mapping[str, Dataset[object]]
Collate: TypeAlias = Callable[[Sequence[object]], Batch]


@dataclass(frozen=True)
class TorchExamples:
    """A torch data set with a length, collated by a function.

    Attributes:
      dataset: the data set; where several workers are used, it and `collate` must be picklable.
      collate: function that makes a batch of samples.
    """

    dataset: Dataset[object]
    collate: Collate

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]  # Dataset does not declare its length

    def batch(self, indices: Sequence[int], *, seed: int | None) -> Batch:
        """Collate; see `ExampleSet.batch`.

        Random transforms of a data set draw from the global generators. These are seeded for each
        sample, so that a sample does not depend on its neighbours, and restored afterwards.
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
    train: Source,
    test: Source,
    clients: Clients | None = None,
    *,
    collate: Collate | None = None,
    labels: Sequence[int] | None = None,
) -> Federated:
    """Make a federated data set of torch data sets.

        from_torch(train, test, PartitionRequest(clients=20))
        from_torch({"site-a": train_a, "site-b": train_b}, test)

    >>> train = TensorDataset(torch.randn(40, 5), torch.arange(40) % 2)
    >>> data = fedpeft.from_torch(train, train, fedpeft.PartitionRequest("iid", clients=4))
    >>> list(data.clients), data.num_labels
    (['client-00', 'client-01', 'client-02', 'client-03'], 2)

    Class names are those of `train.classes`, or of its `ClassLabel` feature.

    Args:
      train: a data set with a length and samples by index, or a mapping from client names to such
        data sets.
      test: the server's test data, or a mapping from client names to their test data.
      clients: a mapping from client names to rows of `train`, or a partition to draw; None where
        `train` is a mapping from client names.
      collate: samples -> batch, a mapping of tensors with `labels`; None is `default_collate`.
      labels: class of each training sample. None means that classes are read from the samples, if
        `labels` is one whole number for each sample.

    Raises:
      DataError: if a row is not in `train` or is given twice, or the partition is not possible.
    """
    train, parts = _joined(train)
    test, test_parts = _joined(test)
    if (clients is None) == (parts is None):
        raise DataError(
            "from_torch: found two divisions into clients, or none; allowed is one: pass train as "
            "a mapping from client names to data sets, or clients="
        )
    strange = [name for name in test_parts or {} if parts is not None and name not in parts]
    if strange:
        raise DataError(
            f"from_torch: test has the client {strange[0]!r}, which train lacks; found there are "
            f"{', '.join(parts or {})}"
        )
    examples = TorchExamples(train, collate or default_collate)
    known = _labels(examples) if labels is None else np.asarray(labels, np.int64)
    if known is not None and len(known) != len(examples):
        raise DataError(f"from_torch: {len(known)} labels for {len(examples)} training samples")
    names = _label_names(train)
    count = int(known.max(initial=-1)) + 1 if known is not None else None
    if count is None or len(names) < count:
        names = ()
    return Federated(
        train=examples,
        test=TorchExamples(test, collate or default_collate),
        clients=_clients(clients if parts is None else parts, known, len(examples)),
        num_labels=len(names) or count,
        label_names=names or None,
        labels=known,
        name=type(_parts(train)[0]).__name__,
        test_clients=test_parts or {},
        augmented=not _is_fixed(train),
    )


def default_collate(samples: Sequence[object]) -> Batch:
    """Stack samples: dictionaries key by key, pairs (x, y) as `inputs` and `labels`.

    Raises:
      DataError: if samples are neither dictionaries nor pairs.
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
    """Read the class of each sample; None where `labels` is not one whole number for each."""
    found = []
    with seeds.isolated(0):
        for index in range(len(examples)):
            labels = examples.collate([examples.dataset[index]]).get("labels")
            if labels is None or labels.is_floating_point() or labels.numel() != 1:
                return None
            found.append(int(labels))
    return np.array(found, np.int64)


def _clients(
    clients: Clients | None, labels: npt.NDArray[np.int64] | None, count: int
) -> Mapping[str, npt.NDArray[np.int64]]:
    if isinstance(clients, PartitionRequest):
        row = row_of(clients)
        if labels is None and row is not None and row.needs == "labels":
            raise DataError(
                f"from_torch: partition {clients.scheme!r} needs labels: pass labels=, or clients "
                "as a mapping from names to rows"
            )
        return partition(np.zeros(count, np.int64) if labels is None else labels, clients)
    given = clients or {}
    parts = {str(name): np.asarray(rows, np.int64) for name, rows in given.items()}
    rows = np.concatenate([np.empty(0, np.int64), *parts.values()])
    if len(rows) and (rows.min() < 0 or rows.max() >= count):
        raise DataError(f"from_torch: clients name rows {rows.min()} to {rows.max()} of {count}")
    if len(np.unique(rows)) < len(rows):
        raise DataError("from_torch: a row of the training data belongs to two clients")
    if not all(len(part) for part in parts.values()) or not parts:
        raise DataError("from_torch: every client needs a row, and there must be a client")
    return parts


def _joined(source: Source) -> tuple[Dataset[object], dict[str, npt.NDArray[np.int64]] | None]:
    """Concatenate the data sets of clients; return the result and each client's rows.

    A single data set is returned as it is, with None for the rows.
    """
    if not isinstance(source, Mapping):
        _check_dataset(source, "the data")
        return source, None
    refuse_splits_as_clients([*map(str, source)], "from_torch")
    for name, part in source.items():
        _check_dataset(part, f"client {name!r}")
    if not source or not all(len(part) for part in source.values()):  # type: ignore[arg-type]  # see above
        raise DataError("from_torch: every client needs a row, and there must be a client")
    joined: ConcatDataset[object] = ConcatDataset(list(source.values()))
    edges = [0, *joined.cumulative_sizes]
    rows = [np.arange(*pair) for pair in itertools.pairwise(edges)]
    return joined, dict(zip(map(str, source), rows, strict=True))


def _check_dataset(dataset: object, where: str) -> None:
    """Refuse what has no length or no samples by index.

    Raises:
      DataError: naming the client.
    """
    if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
        raise DataError(
            f"from_torch: {where} is {type(dataset).__name__}; needed is a data set with a length "
            "and samples by index, such as a DataLoader's `dataset`"
        )


def _parts(dataset: Dataset[object]) -> list[Dataset[object]]:
    """Return the data sets that subsets and concatenations are made of."""
    if isinstance(dataset, Subset):
        return _parts(dataset.dataset)
    if isinstance(dataset, ConcatDataset):
        return [inner for part in dataset.datasets for inner in _parts(part)]
    return [dataset]


def _label_names(dataset: Dataset[object]) -> tuple[str, ...]:
    """Return the class names on which all parts agree; () if there are none."""
    found = {_names_of(part) for part in _parts(dataset)}
    return found.pop() if len(found) == 1 else ()


def _names_of(dataset: Dataset[object]) -> tuple[str, ...]:
    features = getattr(dataset, "features", None) or {}
    label = features.get("labels", features.get("label"))
    return tuple(map(str, getattr(label, "names", None) or getattr(dataset, "classes", None) or ()))


def _is_fixed(dataset: Dataset[object]) -> bool:
    """Return whether samples are certain to be the same every time they are read."""
    return all(isinstance(part, TensorDataset) for part in _parts(dataset))
