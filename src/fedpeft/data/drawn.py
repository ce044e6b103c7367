"""Clients whose examples are drawn on demand: any number of clients, and none takes memory.

    client i:   p ~ Dir(alpha) over the classes;   each example: class ~ p, then a row of that class
    generator   derived from (seed, i): a client's rows are computed each time they are read

Examples are drawn with replacement, so clients share them. This is for studies of scale, with more
clients than examples; to compare methods, use a scheme that deals each example once.

Reference: Hsu et al., Measuring the Effects of Non-Identical Data Distribution for Federated Visual
Classification, 2019 (which draws without replacement while a class lasts).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import overload

import numpy as np
import numpy.typing as npt

from fedpeft.core import seeds

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Names(Sequence[str]):
    """The names `client-00`, `client-01` ..., padded so that sorting keeps the order.

    The names are computed on demand, so that a million of them take no memory.

    Attributes:
      total: number of names, >= 1.
    """

    total: int

    @cached_property
    def width(self) -> int:
        """The number of digits in each name."""
        return max(2, len(str(self.total - 1)))

    def __len__(self) -> int:
        return self.total

    @overload
    def __getitem__(self, place: int) -> str: ...
    @overload
    def __getitem__(self, place: slice) -> list[str]: ...
    def __getitem__(self, place: int | slice) -> str | list[str]:
        """Return the name at a place, or the names of a slice."""
        if isinstance(place, slice):
            return [self[each] for each in range(self.total)[place]]
        if not -self.total <= place < self.total:
            raise IndexError(place)
        return f"client-{place % self.total:0{self.width}d}"

    def __contains__(self, name: object) -> bool:
        return self.number_of(name) is not None

    def number_of(self, name: object) -> int | None:
        """Return the number in a name; None if the name is not in this sequence."""
        digits = name.removeprefix("client-") if isinstance(name, str) else ""
        if not digits.isascii() or not digits.isdecimal() or int(digits) >= self.total:
            return None
        return int(digits) if name == self[int(digits)] else None


class DrawnClients(Mapping[str, IntArray]):
    """A mapping from client names to the rows of each client, int64, drawn on demand.

    Args:
      labels: class of each example, int64 [n].
      clients: number of clients, >= 1.
      size: number of examples of each client, >= 1.
      alpha: concentration of the Dirichlet distribution over classes, > 0.
      seed: in [0, 2**32).
    """

    def __init__(
        self, labels: IntArray, *, clients: int, size: int, alpha: float, seed: int
    ) -> None:
        self.names = Names(clients)
        self.size = size
        self._alpha, self._seed = alpha, seed
        self._rows_of = [np.flatnonzero(labels == label) for label in np.unique(labels)]

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __getitem__(self, name: str) -> IntArray:
        number = self.names.number_of(name)
        if number is None:
            raise KeyError(name)
        rng = np.random.Generator(np.random.PCG64(seeds.derive(self._seed, "drawn", number)))
        shares = rng.dirichlet(np.full(len(self._rows_of), self._alpha))
        counts = rng.multinomial(self.size, shares)
        pairs = zip(self._rows_of, counts, strict=True)
        return np.concatenate([rows[rng.integers(len(rows), size=n)] for rows, n in pairs])


def names_of(clients: Mapping[str, IntArray]) -> Sequence[str]:
    """Return the names of clients in their order; those of `DrawnClients` without making a list."""
    return clients.names if isinstance(clients, DrawnClients) else tuple(clients)


@dataclass(frozen=True)
class Sizes(Mapping[str, int]):
    """A mapping from client names to numbers of examples, without drawing or listing them.

    Attributes:
      clients: client name -> rows of the client.
      times: factor by which each number is multiplied, such as the epochs of a turn; None: what
        it takes to reach `most`, for a client with any example.
      most: largest number; None: no limit.
    """

    clients: Mapping[str, IntArray]
    times: int | None = 1
    most: int | None = None

    def __len__(self) -> int:
        return len(self.clients)

    def __iter__(self) -> Iterator[str]:
        return iter(self.clients)

    def __getitem__(self, name: str) -> int:
        if isinstance(self.clients, DrawnClients) and name in self.clients.names:
            size = self.clients.size
        else:
            size = len(self.clients[name])
        limits = [] if self.times is None else [self.times * size]
        limits += [] if self.most is None else [self.most]
        return min(limits) if size else 0
