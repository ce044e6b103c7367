"""What a partition looks like: counts for pictures and tables."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fedpeft.core.errors import DataError
from fedpeft.data.examples import Federated

__all__ = ["MOST_SHOWN", "label_table", "sizes"]

MOST_SHOWN = 10_000
"""With more clients than this, no table of all of them is made unasked."""


def label_table(federated: Federated) -> npt.NDArray[np.int64]:
    """Return how many examples of each class each client holds, [clients, classes].

    Raises:
      DataError: if the data has no labels (language models).
    """
    if federated.labels is None or federated.num_labels is None:
        raise DataError(f"data: {federated.name} has no labels to count")
    return np.stack(
        [
            np.bincount(federated.labels[rows], minlength=federated.num_labels)
            for rows in federated.clients.values()
        ]
    )


def sizes(federated: Federated) -> npt.NDArray[np.int64]:
    """Return how many examples each client holds, [clients], in the clients' order."""
    return np.array([len(rows) for rows in federated.clients.values()], np.int64)
