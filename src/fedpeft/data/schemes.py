"""Partition schemes: a table from names to functions that deal examples to clients.

References:
  McMahan et al., Communication-Efficient Learning of Deep Networks from Decentralized Data, 2017
  (`iid`, and sorted shards, of which `pathological` is the exact form);
  Li, Diao, Chen, He, Federated Learning on Non-IID Data Silos, 2022 (`quantity`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from fedpeft.core.errors import DataError
from fedpeft.data.dirichlet import Deal, DirichletRule, deal_dirichlet

__all__ = ["PARTITIONS", "Partition", "PartitionRequest", "num_clients", "row_of"]

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class PartitionRequest:
    """How examples are divided among clients.

    Attributes:
      scheme: a key of `PARTITIONS`, or any name with `rule`.
      clients: number of clients, >= 1; for `natural` the most to keep (drawn from the seed), where
        None keeps all.
      alpha: concentration of `dirichlet`, `dirichlet-plain` and `quantity`, > 0.
      min_examples: fewest examples a client may hold, >= 0; natural clients with fewer are left
        out.
      seed: the run's root seed, in [0, 2**32): the schemes draw from it directly.
      classes_per_client: for `pathological`: classes that a client holds, >= 1.
      examples_per_client: for `drawn`: examples that a client holds, >= 1.
      options: options of a rule of your own.
      rule: a partition of your own; None: the one that `scheme` names.
    """

    scheme: str = "dirichlet"
    clients: int | None = 64
    alpha: float = 0.1
    min_examples: int = 10
    seed: int = 1
    classes_per_client: int = 2
    examples_per_client: int = 20
    options: Mapping[str, object] = field(default_factory=dict)
    rule: Partition | None = None


@dataclass(frozen=True)
class Partition:
    """A rule that deals examples to clients.

    Attributes:
      summary: one line for `fedpeft list partitions`.
      uses: request fields that it uses beside `seed` and `min_examples`.
      needs: `labels`, `client` (a column of the data) or "".
      deal: (labels, request, limit of tries) -> `Deal`; None for `natural` and `drawn`. It must
        draw from `request.seed` alone, and give no example twice.
    """

    summary: str
    uses: tuple[str, ...]
    needs: str
    deal: Callable[[IntArray, PartitionRequest, int], Deal] | None


def row_of(request: PartitionRequest) -> Partition | None:
    """Return the partition that a request names; None if there is none of that name."""
    return request.rule or PARTITIONS.get(request.scheme)


def num_clients(request: PartitionRequest) -> int:
    """Return the number of clients of a request for a scheme other than `natural`.

    Raises:
      DataError: if the request has none.
    """
    if request.clients is None:
        raise DataError(
            f"data.partition.clients: scheme {request.scheme!r} needs a number of clients"
        )
    return request.clients


def _iid(labels: IntArray, request: PartitionRequest, max_tries: int) -> Deal:
    order = np.random.RandomState(request.seed).permutation(len(labels))
    return _judge(np.array_split(order, num_clients(request)), request)


def _dirichlet(
    labels: IntArray, request: PartitionRequest, max_tries: int, *, capped: bool = True
) -> Deal:
    clients, least = num_clients(request), request.min_examples
    rule = DirichletRule(clients, request.alpha, least, request.seed, capped)
    return deal_dirichlet(labels, rule, max_tries=max_tries)


def _quantity(labels: IntArray, request: PartitionRequest, max_tries: int) -> Deal:
    """Deal sizes in proportion to a Dirichlet draw; draw until the smallest has enough examples."""
    rng = np.random.RandomState(request.seed)
    order = rng.permutation(len(labels))
    smallest = 0
    for attempt in range(1, max_tries + 1):
        shares = rng.dirichlet(np.full(num_clients(request), request.alpha))
        edges = (np.cumsum(shares)[:-1] * len(labels)).astype(np.int64)
        least = int(np.diff(edges, prepend=0, append=len(labels)).min())
        smallest = max(smallest, least)
        if least >= request.min_examples:
            return Deal(np.split(order, edges), attempt, least)
    return Deal(None, max_tries, smallest)


def _pathological(labels: IntArray, request: PartitionRequest, max_tries: int) -> Deal:
    """Give each client the classes that the fewest clients hold; divide each class equally."""
    rng = np.random.RandomState(request.seed)
    classes, clients = np.unique(labels), num_clients(request)
    per_client = request.classes_per_client
    if per_client > len(classes) or clients * per_client < len(classes):
        least = -(-len(classes) // clients)
        raise DataError(
            f"data.partition.classes_per_client: found {per_client} for {len(classes)} classes and "
            f"{clients} clients; allowed are {least} to {len(classes)}"
        )
    holders: list[list[int]] = [[] for _ in classes]
    for client in rng.permutation(clients):
        ties = rng.permutation(len(classes))
        taken = ties[np.argsort([len(holders[c]) for c in ties], kind="stable")][:per_client]
        for c in taken:
            holders[c].append(int(client))
    shares: list[list[IntArray]] = [[] for _ in range(clients)]
    for label, takers in zip(classes, holders, strict=True):
        order = rng.permutation(np.flatnonzero(labels == label))
        for client, piece in zip(takers, np.array_split(order, len(takers)), strict=True):
            shares[client].append(piece)
    return _judge([rng.permutation(np.concatenate(share)) for share in shares], request)


def _judge(parts: Sequence[IntArray], request: PartitionRequest) -> Deal:
    """Return the outcome of a deal for which one try is enough."""
    smallest = min(len(part) for part in parts)
    return Deal(list(parts) if smallest >= request.min_examples else None, 1, smallest)


PARTITIONS: Mapping[str, Partition] = {
    "iid": Partition("equal shares of a random order", ("clients",), "", _iid),
    "dirichlet": Partition(
        "label skew; a client that holds n/N examples gets no more (the FedPEFT experiments' rule)",
        ("clients", "alpha"),
        "labels",
        _dirichlet,
    ),
    "dirichlet-plain": Partition(
        "label skew without the cap",
        ("clients", "alpha"),
        "labels",
        functools.partial(_dirichlet, capped=False),
    ),
    "pathological": Partition(
        "each client sees a few classes only",
        ("clients", "classes_per_client"),
        "labels",
        _pathological,
    ),
    "quantity": Partition("skewed sizes, labels alike", ("clients", "alpha"), "", _quantity),
    "drawn": Partition(
        "every client draws its own, with replacement; any number of clients, for studies of scale",
        ("clients", "alpha", "examples_per_client"),
        "",
        None,
    ),
    "natural": Partition("by a column of the data", ("clients",), "client", None),
}
"""The partition schemes, by the name that `data.partition.scheme` takes."""
