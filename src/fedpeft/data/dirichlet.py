"""Dirichlet label skew: the capped rule of the FedPEFT experiments, and the plain rule.

For each class c in label order: shuffle its examples, draw p ~ Dir(alpha), leave out every client
that already holds its fair share n/N (the capped rule only), and divide the class in proportion.

    client   0      1   2            p after the cap, renormalised
    class c |xxxxxx|xx|xxxxxxxxx|    edges = floor(cumsum(p) * n_c)

A try deals all classes; the first try in which the smallest client has enough examples is taken.
Legend: B tries, C classes, N clients.

References:
  Hsu, Qi, Brown, Measuring the Effects of Non-Identical Data Distribution, 2019 (the plain rule);
  Sun, Mendieta, Yang, Chen, Conquering the Communication Constraints to Enable Large Pre-Trained
  Models in Federated Learning, 2022 (the capped rule, as its published code has it).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["MAX_TRIES", "Deal", "DirichletRule", "deal_dirichlet"]

MAX_TRIES = 10_000
_BLOCK = 32

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class DirichletRule:
    """The parameters of a Dirichlet deal.

    Attributes:
      clients: number of clients, N, >= 1.
      alpha: concentration, > 0; smaller is more skewed.
      min_examples: fewest examples that a client may hold.
      seed: seed of `numpy.random.RandomState`, in [0, 2**32).
      capped: whether clients that hold n/N examples get no more.
    """

    clients: int
    alpha: float
    min_examples: int
    seed: int
    capped: bool


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


def deal_dirichlet(
    labels: npt.NDArray[np.int64], rule: DirichletRule, *, max_tries: int = MAX_TRIES
) -> Deal:
    """Deal examples to clients; all tries draw from one stream of random numbers.

    Sizes are computed for a block of tries at once; only the try that is taken is dealt in full, by
    drawing its numbers again.

    Args:
      labels: class of each example; only classes that occur are dealt.
      rule: the parameters.
      max_tries: number of tries after which to give up, >= 1.
    """
    members = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    counts = [len(member) for member in members]
    rng = np.random.RandomState(rule.seed)
    smallest = -1
    for start in (0, *range(1, max_tries, _BLOCK)):  # the first try alone is the usual case
        size = min(_BLOCK if start else 1, max_tries - start)
        state = rng.get_state()
        edges_BCN, valid_B = _edges(_gammas(rng, counts, rule, size), counts, capped=rule.capped)
        sizes_BN = np.diff(edges_BCN, axis=2, prepend=0).sum(1)
        least_B = np.where(valid_B, sizes_BN.min(1), -1)
        smallest = max(smallest, int(least_B.max()))
        found = np.flatnonzero(least_B >= rule.min_examples)
        if len(found):
            rng.set_state(state)
            _gammas(rng, counts, rule, int(found[0]))
            parts = _deal(rng, members, edges_BCN[found[0]], rule)
            return Deal(parts, start + int(found[0]) + 1, int(least_B[found[0]]))
    return Deal(None, max_tries, max(smallest, 0))


def _gammas(
    rng: np.random.RandomState, counts: Sequence[int], rule: DirichletRule, tries: int
) -> FloatArray:
    """Draw the random numbers of some tries; return the gamma variates [B, C, N].

    For each class, a try draws a shuffle of its examples and N gamma variates.
    """
    scratch = [np.arange(count) for count in counts]
    gammas_BCN = np.empty((tries, len(counts), rule.clients))
    for row_CN in gammas_BCN:
        for index, order in enumerate(scratch):
            rng.shuffle(order)
            row_CN[index] = rng.standard_gamma(rule.alpha, rule.clients)
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
    rng: np.random.RandomState, members: Sequence[IntArray], edges_CN: IntArray, rule: DirichletRule
) -> list[IntArray]:
    """Deal one try in full, from a generator in the state in which the try began."""
    shares: list[list[IntArray]] = [[] for _ in range(rule.clients)]
    for member, edges_N in zip(members, edges_CN, strict=True):
        order = member.copy()
        rng.shuffle(order)
        rng.standard_gamma(rule.alpha, rule.clients)
        for share, piece in zip(shares, np.split(order, edges_N[:-1]), strict=True):
            share.append(piece)
    parts = [np.concatenate(share) for share in shares]
    for part in parts:
        rng.shuffle(part)
    return parts
