"""Labels: a column of strings or whole numbers becomes int64 classes, checked row by row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedpeft.core.errors import DataError
from fedpeft.data.tables import Table, values_of

__all__ = ["Classes", "encode_labels", "read_names"]

_MAX_UNNAMED = 1000


@dataclass(frozen=True)
class Classes:
    """The encoded labels of a training and an evaluation table.

    Attributes:
      train: class of each training row, int64 [n].
      test: class of each evaluation row, int64 [m].
      count: number of classes.
      names: names of the classes, or None where the data has numbers only.
    """

    train: npt.NDArray[np.int64]
    test: npt.NDArray[np.int64]
    count: int
    names: tuple[str, ...] | None

    @property
    def shown(self) -> tuple[str, ...]:
        """The names of the classes; their numbers where the data has numbers only."""
        return self.names or tuple(map(str, range(self.count)))


def encode_labels(train: Table, test: Table, column: str, classes: Sequence[str] = ()) -> Classes:
    """Encode the labels of both tables alike; strings are numbered in sorted order.

    Truth values are the classes `False` (0) and `True` (1).

    Args:
      train: the training table.
      test: the evaluation table.
      column: name of the column of labels.
      classes: names of all classes in the order of their numbers; () takes those in the data.

    Raises:
      DataError: naming the first row with a missing, fractional, negative or unknown label.
    """
    if column not in test.columns:
        raise DataError(
            f"data.label: the test split has no column {column!r}; found are "
            f"{', '.join(test.columns)}"
        )
    rows = [_values(table, column, split) for table, split in ((train, "train"), (test, "test"))]
    if all(isinstance(value, bool) for part in rows for value in part):
        rows = [[str(value) for value in part] for part in rows]
        classes = tuple(classes) or ("False", "True")
    names = tuple(classes) or train.names.get(column)
    if any(isinstance(value, str) for part in rows for value in part):
        names = _check_known(rows, classes) or tuple(
            sorted({str(v) for part in rows for v in part})
        )
        place = {name: index for index, name in enumerate(names)}
        rows = [[place[str(value)] for value in part] for part in rows]
    encoded = [_integers(p, s, names) for p, s in zip(rows, ("train", "test"), strict=True)]
    count = len(names) if names else 1 + max(int(part.max(initial=0)) for part in encoded)
    distinct = len(np.unique(np.concatenate(encoded)))
    if names is None and count > max(_MAX_UNNAMED, 10 * distinct):
        raise DataError(
            f"data.label: {column!r} has {distinct} different numbers up to {count - 1}; "
            "classes are 0, 1, 2 ...: store words, or number them so"
        )
    return Classes(encoded[0], encoded[1], count, names)


def read_names(table: Table, column: str) -> list[str]:
    """Return a column of clients as strings: the source's name for a number, where it has one.

    Raises:
      DataError: if a value is missing.
    """
    names = table.names.get(column)
    values = _values(table, column, "data")
    if names is None:
        return [str(value) for value in values]
    return [names[value] if isinstance(value, int) else str(value) for value in values]


def _check_known(rows: Sequence[Sequence[object]], classes: Sequence[str]) -> tuple[str, ...]:
    """Return the given classes, after a check that every label of the data is among them."""
    unknown = sorted({str(value) for part in rows for value in part} - set(classes))
    if classes and unknown:
        raise DataError(
            f"data.classes: the data has {unknown[0]!r}, which is not among the {len(classes)} "
            "classes; add it there in the server's order, or leave such rows out"
        )
    return tuple(classes)


def _values(table: Table, column: str, split: str) -> list[object]:
    """Return a column as plain Python values, after a check that none is missing."""
    values = values_of(table.columns[column])
    for row, value in enumerate(values):
        if value is None or value != value:
            raise DataError(
                f"data: {column!r} is missing in row {row} of the {split} split: "
                "fill it in or leave the row out"
            )
    return values


def _integers(
    values: Sequence[object], split: str, names: tuple[str, ...] | None
) -> npt.NDArray[np.int64]:
    for row, value in enumerate(values):
        whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
        if not whole or value < 0 or (names is not None and value >= len(names)):  # type: ignore[operator]  # a number here
            allowed = f"0 to {len(names) - 1}" if names else "words, or whole numbers from 0"
            raise DataError(
                f"data.label: row {row} of the {split} split is {value!r}; allowed are "
                f"{allowed}. A split without labels cannot be used: see data.test_split"
            )
    return np.array(values, np.float64).astype(np.int64)
