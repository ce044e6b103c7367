"""Partitions: which client holds which training examples, as pure functions of labels and a seed.

    iid              equal shares of a random order
    dirichlet        label skew, capped: no client grows much past n/N
    dirichlet-plain  label skew without the cap
    pathological     every client holds `classes_per_client` classes only
    quantity         sizes ~ Dir(alpha), labels distributed alike
    natural          by a column of the data: speaker, author, hospital
    drawn            each client's examples are drawn with replacement

A partition depends on the labels and the seed alone, so every tuning method gets the same clients.
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from fedpeft.core.errors import DataError
from fedpeft.data.drawn import DrawnClients, Names
from fedpeft.data.schemes import (
    MAX_TRIES,
    PARTITIONS,
    Deal,
    PartitionRequest,
    num_clients,
    row_of,
)

_log = logging.getLogger(__name__)
_ADVICE_TRIES = 200

IntArray = npt.NDArray[np.int64]


def partition(
    labels: IntArray, request: PartitionRequest, natural: Sequence[str] | None = None
) -> Mapping[str, IntArray]:
    """Divide examples among clients.

    Args:
      labels: class of each example, int64 [n]; schemes that need no labels use its length only.
      request: the scheme and its parameters.
      natural: name of each example's client, for the scheme `natural`.

    Returns:
      Client name -> indices into `labels`, in the clients' order. Only `drawn` gives an index to
      several clients, and only `natural` and `drawn` leave indices out.

    Raises:
      DataError: if the request is out of range, has more clients than there are examples, or no try
        gave every client `min_examples`.
    """
    _check(request, len(labels), natural)
    if request.scheme == "natural":
        return _natural(list(natural or ()), request)
    if request.scheme == "drawn":
        return DrawnClients(
            labels,
            clients=num_clients(request),
            size=request.examples_per_client,
            alpha=request.alpha,
            seed=request.seed,
        )
    deal = _attempt(labels, request)
    if deal.parts is None:
        raise DataError(_infeasible(labels, request, deal))
    return dict(zip(Names(len(deal.parts)), deal.parts, strict=True))


def _check(request: PartitionRequest, num_examples: int, natural: Sequence[str] | None) -> None:
    where = "data.partition"
    if row_of(request) is None:
        near = difflib.get_close_matches(request.scheme, PARTITIONS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise DataError(
            f"{where}.scheme: found {request.scheme!r}, allowed are {', '.join(PARTITIONS)}{hint}"
        )
    if request.scheme == "natural" and natural is None:
        raise DataError(
            f"{where}.scheme: 'natural' needs a column that names the client of each example; the "
            "data has none that was found: name it in `data.client`"
        )
    if natural is not None and request.scheme == "natural" and len(natural) != num_examples:
        raise DataError(f"{where}: {len(natural)} client names for {num_examples} examples")
    for name, value, least in (
        ("clients", request.clients, 1),
        ("min_examples", request.min_examples, 0),
        ("seed", request.seed, 0),
        ("classes_per_client", request.classes_per_client, 1),
        ("examples_per_client", request.examples_per_client, 1),
    ):
        if value is not None and value < least:
            raise DataError(f"{where}.{name}: found {value}, allowed is {least} or more")
    if not request.alpha > 0 or request.seed >= 2**32:
        raise DataError(
            f"{where}: found alpha {request.alpha} and seed {request.seed}; "
            "allowed are alpha > 0 and seed < 2**32"
        )
    if request.scheme == "drawn":
        _check_drawn(request, num_examples)
    elif request.scheme != "natural" and num_clients(request) > num_examples:
        raise DataError(
            f"{where}.clients: found {request.clients} clients for {num_examples} examples; "
            f"allowed are at most {num_examples} clients: lower it, or raise data.budget"
        )


def _check_drawn(request: PartitionRequest, num_examples: int) -> None:
    if not num_examples:
        raise DataError("data.partition: there are no examples to draw from")
    if request.examples_per_client < request.min_examples:
        raise DataError(
            f"data.partition.examples_per_client: found {request.examples_per_client}; allowed is "
            f"{request.min_examples} (data.partition.min_examples) or more"
        )


def _attempt(labels: IntArray, request: PartitionRequest, *, max_tries: int = MAX_TRIES) -> Deal:
    """Deal examples; with fewer tries where `min_examples` for every client is impossible."""
    if num_clients(request) * request.min_examples > len(labels):
        max_tries = min(max_tries, _ADVICE_TRIES)
    row = row_of(request)
    assert row is not None and row.deal is not None, "natural clients are not dealt"
    return row.deal(labels, request, max_tries)


def _infeasible(labels: IntArray, request: PartitionRequest, deal: Deal) -> str:
    """Return an error message: what the tries reached, and single changes that would work."""
    clients = num_clients(request)
    row = row_of(request)
    uses = row.uses if row else ()
    ways = [f"min_examples = {deal.smallest}"] if deal.smallest > 0 else []
    if "alpha" in uses:
        larger = (replace(request, alpha=a) for a in (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 100.0))
        ways += _first_that_works(labels, [r for r in larger if r.alpha > request.alpha], "alpha")
    fewer = [replace(request, clients=clients * k // 8) for k in (7, 6, 5, 4, 3, 2, 1)]
    ways += _first_that_works(labels, [r for r in fewer if r.clients], "clients")
    settings = "".join(f", {name} {getattr(request, name)}" for name in uses if name != "clients")
    return (
        f"data.partition: {request.scheme} of {len(labels)} examples over {clients} clients"
        f"{settings}, seed {request.seed}: in {deal.tries} tries the smallest client reached "
        f"{deal.smallest} examples, min_examples is {request.min_examples}. "
        + (
            f"Any one of these would do: {', '.join(ways)}"
            if ways
            else "Ask for less of both, or use more data"
        )
    )


def _first_that_works(
    labels: IntArray, requests: Sequence[PartitionRequest], field: str
) -> list[str]:
    for request in requests:
        if _attempt(labels, request, max_tries=_ADVICE_TRIES).parts is not None:
            return [f"{field} = {getattr(request, field)}"]
    return []


def _natural(names: Sequence[str], request: PartitionRequest) -> dict[str, IntArray]:
    found = sorted(set(names), key=_by_number)
    position = {name: index for index, name in enumerate(found)}
    column = np.array([position[name] for name in names], np.int64)
    sizes = np.bincount(column, minlength=len(found))
    keep = [index for index in range(len(found)) if sizes[index] >= max(request.min_examples, 1)]
    if not keep:
        raise DataError(
            f"data.partition: none of {len(found)} natural clients has {request.min_examples} "
            f"examples, the largest has {sizes.max(initial=0)}: lower min_examples"
        )
    if len(keep) < len(found):
        left = [f"{found[i]} ({sizes[i]})" for i in range(len(found)) if i not in set(keep)]
        more = f" and {len(left) - 8} more" if len(left) > 8 else ""
        _log.warning(
            "data.partition: left out %d of %d natural clients with fewer than %d examples: %s%s; "
            "lower data.partition.min_examples to keep them",
            len(left),
            len(found),
            request.min_examples,
            ", ".join(left[:8]),
            more,
        )
    rng = np.random.RandomState(request.seed)
    if request.clients is not None and request.clients < len(keep):
        keep = sorted(rng.choice(keep, request.clients, replace=False).tolist())
    elif request.clients is not None and request.clients > len(keep):
        _log.warning(
            "data.partition.clients: found %d; the data has %d natural clients, which are all used",
            request.clients,
            len(keep),
        )
    return {found[index]: np.flatnonzero(column == index) for index in keep}


def _by_number(name: str) -> tuple[int, str]:
    """Return a sort key: numbers by value, before other names in alphabetical order."""
    return (int(name), "") if name.isdecimal() else (2**62, name)
