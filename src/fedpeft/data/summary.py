"""Summaries of a partition: numbers of examples, for figures and tables."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fedpeft.core.errors import DataError
from fedpeft.data.drawn import DrawnClients
from fedpeft.data.examples import Federated

MOST_SHOWN = 10_000
"""Number of clients up to which a table of all clients is made by default."""


def label_table(federated: Federated) -> npt.NDArray[np.int64]:
    """Return the number of examples of each class that each client holds, [clients, classes].

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
    """Return the number of examples of each client, [clients], in the clients' order."""
    return np.array([len(rows) for rows in federated.clients.values()], np.int64)


def num_examples(federated: Federated) -> int:
    """Return the number of training examples of all clients; no client is drawn for it."""
    clients = federated.clients
    if isinstance(clients, DrawnClients):
        return len(clients) * clients.size
    return int(sizes(federated).sum())
