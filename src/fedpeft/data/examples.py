"""Examples: tables that return collated batches by index, and the rows of each client."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from fedpeft.data.preprocessing import Preprocessing
from fedpeft.data.request import DataRequest
from fedpeft.models.tasks import Batch


class ExampleSet(Protocol):
    """A table of examples. All randomness comes from the seed that is passed."""

    def __len__(self) -> int: ...

    def batch(self, indices: Sequence[int], *, seed: int | None) -> Batch:
        """Collate examples.

        Args:
          indices: rows of the table, in any order; a row may be repeated.
          seed: seed of training-time augmentation, which depends for each example on the seed and
            its index alone; None means no augmentation, as in evaluation.
        """
        ...


@runtime_checkable
class EpochViews(Protocol):
    """A table with a fixed number of views of its examples, which alternate between epochs."""

    def in_epoch(self, epoch: int) -> ExampleSet:
        """Return the table for an epoch of a turn; epochs count from 0."""
        ...


def in_epoch(examples: ExampleSet, epoch: int) -> ExampleSet:
    """Return the table for an epoch of a turn, from 0: `examples` itself unless it has views."""
    return examples.in_epoch(epoch) if isinstance(examples, EpochViews) else examples


@runtime_checkable
class HasLengths(Protocol):
    """A table of texts whose lengths are known without collating them."""

    def lengths(self, indices: npt.NDArray[np.int64]) -> npt.NDArray[np.int64] | None:
        """Return the number of tokens of each example [B]; None where they have none."""
        ...


@dataclass(frozen=True)
class ClientData:
    """The examples of one client: some rows of a shared table.

    Attributes:
      examples: the table, shared by all clients of a process.
      indices: the rows of this client, int64.
    """

    examples: ExampleSet
    indices: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.indices)


def lengths_of(data: ClientData) -> npt.NDArray[np.int64] | None:
    """Return the number of tokens of each of a client's texts [n]; None for other examples."""
    examples = data.examples
    return examples.lengths(data.indices) if isinstance(examples, HasLengths) else None


@dataclass(frozen=True)
class Federated:
    """A data set that is ready for a run.

    Attributes:
      train: the training table.
      test: the server's test table.
      clients: client name -> rows of `train`, in the order of the clients' numbers.
      num_labels: number of classes; None where there are none.
      label_names: names of the classes, or None where the data has none.
      labels: class of each row of `train`, int64; None where a row has no single class.
      name: name of the data set, for records and model cards.
      test_clients: client name -> rows of `test`, where the data has natural clients; else empty.
      augmented: whether training batches differ from epoch to epoch.
      digest: SHA-256 (hex) of the texts where they depend on the machine (`docstrings`); else "".
      request: the request that loads the same data again; None for data passed from Python.
      preprocessing: how raw input became the tensors of `test`; None where the user's own data set
        returns tensors.
    """

    train: ExampleSet
    test: ExampleSet
    clients: Mapping[str, npt.NDArray[np.int64]]
    num_labels: int | None
    label_names: tuple[str, ...] | None
    labels: npt.NDArray[np.int64] | None
    name: str
    test_clients: dict[str, npt.NDArray[np.int64]]
    augmented: bool = False
    digest: str = ""
    request: DataRequest | None = None
    preprocessing: Preprocessing | None = None


class _NoExamples:
    """A table without examples."""

    def __len__(self) -> int:
        return 0

    def batch(self, indices: Sequence[int], *, seed: int | None) -> Batch:
        raise IndexError("a table without examples has no batches")


NO_DATA = ClientData(_NoExamples(), np.empty(0, dtype=np.int64))
"""The data of a client without examples: in a plan, at a server, for the canaries of an audit."""
