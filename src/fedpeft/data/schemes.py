"""Partition schemes: a table from names to functions that deal examples to clients.

Dirichlet label skew has a plain rule, and the capped one of the FedPEFT experiments. For each class
c in label order: shuffle its examples, draw p ~ Dir(alpha), leave out every client that already
holds its fair share n/N (the capped rule only), and divide the class in proportion.

    client   0      1   2            p after the cap, renormalised
    class c |xxxxxx|xx|xxxxxxxxx|    edges = floor(cumsum(p) * n_c)

A try deals all classes; the first try in which the smallest client has enough examples is taken.
Legend: B tries, C classes, N clients.

References:
  McMahan et al., Communication-Efficient Learning of Deep Networks from Decentralized Data, 2017
  (`iid`, and sorted shards, of which `pathological` is the exact form);
  Li, Diao, Chen, He, Federated Learning on Non-IID Data Silos, 2022 (`quantity`);
  Hsu, Qi, Brown, Measuring the Effects of Non-Identical Data Distribution, 2019 (the plain rule);
  Sun, Mendieta, Yang, Chen, Conquering the Communication Constraints to Enable Large Pre-Trained
  Models in Federated Learning, 2022 (the capped rule, as its published code has it).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from fedpeft.core.errors import DataError

MAX_TRIES = 10_000
_BLOCK = 32


IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]


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


@dataclass(frozen=True)
class Deal:
    """The outcome of a deal.

    Attributes:
      parts: N index arrays, one for each client; None where no try succeeded.
      tries: number of tries.
      smallest: examples of the smallest client: in the deal, or where none succeeded in the best
        try.
    """

    parts: list[IntArray] | None
    tries: int
    smallest: int


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


def deal_dirichlet(
    labels: IntArray, request: PartitionRequest, max_tries: int = MAX_TRIES, *, capped: bool = True
) -> Deal:
    """Deal examples to clients; all tries draw from one stream of random numbers.

    Sizes are computed for a block of tries at once; only the try that is taken is dealt in full, by
    drawing its numbers again.

    Args:
      labels: class of each example; only classes that occur are dealt.
      request: the number of clients, `alpha`, `min_examples` and the seed.
      max_tries: number of tries after which to give up, >= 1.
      capped: whether clients that hold n/N examples get no more.
    """
    members = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    counts = [len(member) for member in members]
    rng = np.random.RandomState(request.seed)
    smallest = -1
    for start in (0, *range(1, max_tries, _BLOCK)):  # the first try alone is the usual case
        size = min(_BLOCK if start else 1, max_tries - start)
        state = rng.get_state()
        edges_BCN, valid_B = _edges(_gammas(rng, counts, request, size), counts, capped=capped)
        sizes_BN = np.diff(edges_BCN, axis=2, prepend=0).sum(1)
        least_B = np.where(valid_B, sizes_BN.min(1), -1)
        smallest = max(smallest, int(least_B.max()))
        found = np.flatnonzero(least_B >= request.min_examples)
        if len(found):
            rng.set_state(state)
            _gammas(rng, counts, request, int(found[0]))
            parts = _deal(rng, members, edges_BCN[found[0]], request)
            return Deal(parts, start + int(found[0]) + 1, int(least_B[found[0]]))
    return Deal(None, max_tries, max(smallest, 0))


def _gammas(
    rng: np.random.RandomState, counts: Sequence[int], request: PartitionRequest, tries: int
) -> FloatArray:
    """Draw the random numbers of some tries; return the gamma variates [B, C, N].

    For each class, a try draws a shuffle of its examples and N gamma variates.
    """
    scratch = [np.arange(count) for count in counts]
    gammas_BCN = np.empty((tries, len(counts), num_clients(request)))
    for row_CN in gammas_BCN:
        for index, order in enumerate(scratch):
            rng.shuffle(order)
            row_CN[index] = rng.standard_gamma(request.alpha, len(row_CN[index]))
    return gammas_BCN


def _edges(
    gammas_BCN: FloatArray, counts: Sequence[int], *, capped: bool
) -> tuple[IntArray, npt.NDArray[np.bool_]]:
    """Return where to divide every class, [B, C, N], and which tries are valid, [B].

    A try is invalid if all clients were full before a class was dealt.
    """
    tries, classes, clients = gammas_BCN.shape
    share = sum(counts) / clients if capped else np.inf
    # A Dirichlet draw is gamma variates over their sum, added in order: numpy's own arithmetic.
    totals_BC1 = np.cumsum(gammas_BCN, axis=2)[:, :, -1:]
    p_BCN = gammas_BCN * (1 / np.maximum(totals_BC1, np.finfo(float).tiny))
    edges_BCN = np.empty((tries, classes, clients), np.int64)
    held_BN = np.zeros((tries, clients), np.int64)
    valid_B = np.ones(tries, np.bool_)
    for index, count in enumerate(counts):
        p_BN = p_BCN[:, index] * (held_BN < share)
        left_B1 = p_BN.sum(1, keepdims=True)
        valid_B &= left_B1[:, 0] > 0
        p_BN = p_BN / np.where(left_B1 > 0, left_B1, 1)
        edges_BN = (np.cumsum(p_BN, axis=1) * count).astype(np.int64)
        edges_BN[:, -1] = count
        edges_BCN[:, index] = edges_BN
        held_BN += np.diff(edges_BN, axis=1, prepend=0)
    return edges_BCN, valid_B


def _deal(
    rng: np.random.RandomState,
    members: Sequence[IntArray],
    edges_CN: IntArray,
    request: PartitionRequest,
) -> list[IntArray]:
    """Deal one try in full, from a generator in the state in which the try began."""
    shares: list[list[IntArray]] = [[] for _ in range(num_clients(request))]
    for member, edges_N in zip(members, edges_CN, strict=True):
        order = member.copy()
        rng.shuffle(order)
        rng.standard_gamma(request.alpha, len(shares))
        for share, piece in zip(shares, np.split(order, edges_N[:-1]), strict=True):
            share.append(piece)
    parts = [np.concatenate(share) for share in shares]
    for part in parts:
        rng.shuffle(part)
    return parts


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
        deal_dirichlet,
    ),
    "dirichlet-plain": Partition(
        "label skew without the cap",
        ("clients", "alpha"),
        "labels",
        functools.partial(deal_dirichlet, capped=False),
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
