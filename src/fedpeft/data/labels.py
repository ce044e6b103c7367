"""Labels: a column of strings or whole numbers becomes int64 classes, checked row by row."""

from __future__ import annotations

import logging
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NoReturn

import numpy as np
import numpy.typing as npt

from fedpeft.core.errors import DataError
from fedpeft.data.tables import Table, values_of

_MAX_UNNAMED = 1000
_LARGEST = 2**53
_LIKE_MISSING = frozenset({"na", "n/a", "nan", "null", "none", "nil", "missing", "-", "?", "#n/a"})

_log = logging.getLogger(__name__)


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


def encode_labels(
    train: Table, test: Table, column: str, classes: Sequence[str] = (), *, part: bool = False
) -> Classes:
    """Encode the labels of both tables alike; strings are numbered in sorted order.

    Names are compared after Unicode's normal form C, and a warning tells those that differ in case
    or blanks only. Truth values are the classes `False` (0) and `True` (1). Whole numbers that are
    not 0, 1, 2 ... without a gap are classes named by these numbers, unless the data are `part` of
    a whole, whose other parts may fill the gap.

    Args:
      train: the training table.
      test: the evaluation table.
      column: name of the column of labels.
      classes: names of all classes in the order of their numbers; () takes those in the data.
      part: whether these are the data of one site among several.

    Raises:
      DataError: naming the first row with a missing, fractional, negative or unknown label.
    """
    if column not in test.columns:
        raise DataError(
            f"data.label: the test split has no column {column!r}; found are "
            f"{', '.join(test.columns)}"
        )
    rows = [_values(table, column) for table in (train, test)]
    if all(isinstance(value, bool) for values in rows for value in values):
        rows = [[str(value) for value in values] for values in rows]
        classes = tuple(classes) or ("False", "True")
    names = tuple(classes) or train.names.get(column)
    numbered = bool(classes) and all(name.isdecimal() for name in classes)
    if numbered or any(isinstance(value, str) for values in rows for value in values):
        rows = [_words(values, table) for values, table in zip(rows, (train, test), strict=True)]
        names = _check_known(rows, classes) or _named(rows, column)
        place = {_plain(name): index for index, name in enumerate(names)}
        rows = [[place[str(value)] for value in values] for values in rows]
    encoded = [_integers(p, t, names) for p, t in zip(rows, (train, test), strict=True)]
    numbers = np.unique(np.concatenate(encoded))
    count = len(names) if names else 1 + int(numbers.max(initial=0))
    if names is None and part and count > max(_MAX_UNNAMED, 10 * len(numbers)):
        raise DataError(
            f"data.label: {column!r} has {len(numbers)} different numbers up to {count - 1}; "
            "classes are 0, 1, 2 ...: store words, or number them so"
        )
    if names is None and not part and count > len(numbers) > 0:
        names, count = tuple(map(str, numbers.tolist())), len(numbers)
        encoded = [np.searchsorted(numbers, each).astype(np.int64) for each in encoded]
        _log.warning(
            "data.label: the numbers %s to %s of %r leave gaps: they are taken as the names of "
            "%d classes",
            names[0],
            names[-1],
            column,
            count,
        )
    found = Classes(encoded[0], encoded[1], count, names)
    if not part:
        _warn_of_absent(found, column)
    return found


def warn_of_near_names(names: Iterable[str], column: str, what: str) -> None:
    """Warn of names that differ in letter case, blanks, hyphens or invisible characters only.

    Args:
      names: the different names.
      column: the column that holds them.
      what: that they name: `classes` or `clients`.
    """
    alike: dict[str, list[str]] = {}
    for name in sorted({*names}):
        alike.setdefault(_alike(name), []).append(name)
    for group in alike.values():
        if len(group) > 1:
            _log.warning(
                "data: %s of %r are different %s, which differ in case, blanks or hyphens only",
                ", ".join(map(repr, group)),
                column,
                what,
            )


def _alike(name: str) -> str:
    """Return what names that a person takes for one have in common."""
    seen = "".join(c for c in name if unicodedata.category(c) != "Cf").replace("_", " ")
    words = "".join(" " if unicodedata.category(c) == "Pd" else c for c in seen).split()
    return unicodedata.normalize("NFKC", " ".join(words)).casefold()


def _warn_of_absent(found: Classes, column: str) -> None:
    """Warn of what makes a figure say nothing: classes that are tested only, or one class."""
    shown = found.shown
    only = sorted({*found.test.tolist()} - {*found.train.tolist()})
    if only and len(found.train):
        _log.warning(
            "data.label: no training example of %r has the class %s of the test set: these cannot "
            "be learned",
            column,
            ", ".join(repr(shown[number]) for number in only[:5]) + " ..." * (len(only) > 5),
        )
    if found.count == 1:
        _log.warning(
            "data.label: %r has one class, %r: accuracy is 1 whatever is learned", column, shown[0]
        )


def read_names(table: Table, column: str) -> list[str]:
    """Return a column of clients as strings: the source's name for a number, where it has one.

    Raises:
      DataError: if a value is missing.
    """
    names = table.names.get(column)
    values = _values(table, column)
    for row, value in enumerate(values):
        if isinstance(value, list | dict | bytes):
            raise DataError(
                f"data.client: {table.place(row)} has {repr(value)[:80]}; allowed are words and "
                "numbers: is it the right column? Name it in data.client"
            )
    if names is None:
        return [_plain(value) for value in values]
    return [names[value] if isinstance(value, int) else _plain(value) for value in values]


def _plain(value: object) -> str:
    """Return a name in Unicode's normal form C, in which equal letters have equal bytes."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return unicodedata.normalize("NFC", str(value))


def _words(values: Sequence[object], table: Table) -> list[object]:
    """Return labels as words: texts and whole numbers.

    Raises:
      DataError: for the first one that is neither.
    """
    for row, value in enumerate(values):
        if not isinstance(value, str) and not _is_whole(value):
            _refuse(value, table.place(row), "words, or whole numbers from 0")
    return [_plain(value) for value in values]


def _named(rows: Sequence[Sequence[object]], column: str) -> tuple[str, ...]:
    """Return the names of the classes of the data, sorted, with a warning of doubtful ones."""
    names = tuple(sorted({str(value) for values in rows for value in values}))
    warn_of_near_names(names, column, "classes")
    missing = [name for name in names if name.strip().casefold() in _LIKE_MISSING]
    if missing and len(names) > len(missing):
        _log.warning(
            "data.label: %s of %r %s taken as a class; where it stands for a missing label, leave "
            "those rows out or their cells empty",
            ", ".join(map(repr, missing)),
            column,
            "is" if len(missing) == 1 else "are each",
        )
    return names


def _check_known(rows: Sequence[Sequence[object]], classes: Sequence[str]) -> tuple[str, ...]:
    """Return the given classes, after a check that every label of the data is among them."""
    if not classes:
        return ()
    unknown = sorted({str(v) for part in rows for v in part} - {_plain(name) for name in classes})
    if unknown:
        raise DataError(
            f"data.classes: the data has {unknown[0]!r}, which is not among the {len(classes)} "
            "classes; add it there in the server's order, or leave such rows out"
        )
    return tuple(classes)


def _values(table: Table, column: str) -> list[object]:
    """Return a column as plain Python values, after a check that none is missing or blank."""
    values = values_of(table.columns[column])
    for row, value in enumerate(values):
        if value is None or value != value or (isinstance(value, str) and not value.strip()):
            raise DataError(
                f"data: {column!r} is missing in {table.place(row)}: "
                "fill it in or leave the row out"
            )
        if isinstance(value, str) and any(c < " " and not c.isspace() for c in value):
            raise DataError(
                f"data: {column!r} in {table.place(row)} holds a control character: "
                f"{repr(value)[:80]}; take it out"
            )
    return values


def _is_whole(value: object) -> bool:
    """Whether a value is a whole number that floating point holds exactly."""
    whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    return whole and abs(value) < _LARGEST  # type: ignore[arg-type]  # a number here


def _integers(
    values: Sequence[object], table: Table, names: tuple[str, ...] | None
) -> npt.NDArray[np.int64]:
    for row, value in enumerate(values):
        if not _is_whole(value) or value < 0 or (names is not None and value >= len(names)):  # type: ignore[operator]  # a number here
            allowed = f"0 to {len(names) - 1}" if names else "words, or whole numbers from 0"
            _refuse(value, table.place(row), allowed)
    return np.array(values, np.float64).astype(np.int64)


def _refuse(value: object, place: str, allowed: str) -> NoReturn:
    """Refuse a label.

    Raises:
      DataError: with what the value may mean.
    """
    if value == -1:
        hint = ". A split without labels cannot be used: see data.test_split"
    elif isinstance(value, list | dict | tuple):
        hint = ": one class an example"
    elif isinstance(value, bytes):
        hint = ": save the column as texts"
    else:
        hint = ": is it the right column? Name it in data.label"
    raise DataError(f"data.label: {place} has {repr(value)[:80]}; allowed are {allowed}{hint}")
