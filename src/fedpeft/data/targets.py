"""Targets: what is predicted of an example, as a tensor, by the kind of a task's targets.

class      one of C names or numbers        labels [N], int64
number     any finite number                labels [N], float32
classes    a list of names, maybe empty     labels [N, C], float32, 0 or 1
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fedpeft.core.errors import DataError
from fedpeft.data.labels import encode_labels, warn_of_near_names
from fedpeft.data.request import DataRequest
from fedpeft.data.tables import Table, required_column, values_of

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Targets:
    """The targets of a training and an evaluation table.

    Attributes:
      train: of each training row.
      test: of each evaluation row.
      num_labels: number of classes; None for numbers.
      names: names of the classes, or None where the data has none.
      classes: class of each training row, for partitions by class; None where a row has no single
        class.
    """

    train: Tensor
    test: Tensor
    num_labels: int | None = None
    names: tuple[str, ...] | None = None
    classes: IntArray | None = None

    @property
    def shown(self) -> tuple[str, ...]:
        """The names of the classes; their numbers where the data has numbers only."""
        return self.names or tuple(map(str, range(self.num_labels or 0)))

    @property
    def skew(self) -> IntArray:
        """The class of each training row, or zeros."""
        zeros: IntArray = np.zeros(len(self.train), np.int64)
        return zeros if self.classes is None else self.classes

    def drawn(self, rows: IntArray) -> Tensor:
        """Return the targets of some training rows."""
        return self.train[torch.from_numpy(rows)]


def read_targets(kind: str, tables: tuple[Table, Table], request: DataRequest) -> Targets:
    """Read the targets of both tables.

    Args:
      kind: a key of `KINDS`.
      tables: the training and the evaluation table.
      request: names the column, and the classes if they are known.

    Raises:
      DataError: naming the first row whose target cannot be used.
    """
    return KINDS[kind](tables, required_column(tables, "label", request), request)


def _class(tables: tuple[Table, Table], column: str, request: DataRequest) -> Targets:
    found = encode_labels(*tables, column, request.classes, part=request.whole)
    return Targets(
        torch.from_numpy(found.train),
        torch.from_numpy(found.test),
        found.count,
        found.names,
        found.train,
    )


def _number(tables: tuple[Table, Table], column: str, request: DataRequest) -> Targets:
    train, test = (
        torch.tensor(
            [
                _finite(v, table.place(row))
                for row, v in enumerate(values_of(table.columns[column]))
            ],
            dtype=torch.float32,
        )
        for table in tables
    )
    return Targets(train, test)


def _finite(value: object, place: str) -> float:
    if isinstance(value, str):  # as a file of separated values has it
        with contextlib.suppress(ValueError):
            value = float(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise DataError(
            f"data.label: {place} has {repr(value)[:80]}; allowed is a finite number: is it the "
            "right column? Name it in data.label"
        )
    return float(value)


def _classes(tables: tuple[Table, Table], column: str, request: DataRequest) -> Targets:
    known = tables[0].names.get(column, ())
    rows = [
        [
            _names(value, table.place(row), known)
            for row, value in enumerate(values_of(table.columns[column]))
        ]
        for table in tables
    ]
    names = (
        tuple(request.classes) or known or tuple(sorted({n for t in rows for r in t for n in r}))
    )
    if not names:
        raise DataError(f"data.label: no row has a class in {column!r}: name another column")
    if not request.classes:
        warn_of_near_names(names, column, "classes")
    place = {name: number for number, name in enumerate(names)}
    found = [torch.zeros(len(part), len(names)) for part in rows]
    for table, part, labels in zip(tables, rows, found, strict=True):
        for row, chosen in enumerate(part):
            for name in chosen:
                if name not in place:
                    raise DataError(
                        f"data.classes: {table.place(row)} has {name!r}, which is not among the "
                        f"{len(names)} classes; add it there in the server's order"
                    )
                labels[row, place[name]] = 1.0
    return Targets(found[0], found[1], len(names), names)


def _names(value: object, place: str, known: Sequence[str]) -> list[str]:
    """Return a cell as names of classes; their numbers stand for names that the source has."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        with contextlib.suppress(ValueError):
            value = json.loads(value)
    if not isinstance(value, list | tuple) or not all(
        isinstance(each, str | int) and not isinstance(each, bool) for each in value
    ):
        raise DataError(
            f"data.label: {place} has {repr(value)[:80]}; allowed is a list of classes, such as "
            '["news", "sport"] or []'
        )
    return [known[each] if isinstance(each, int) and known else str(each) for each in value]


KINDS: Mapping[str, Callable[[tuple[Table, Table], str, DataRequest], Targets]] = {
    "class": _class,
    "number": _number,
    "classes": _classes,
}
"""What reads targets, by the kind of a task's targets."""
