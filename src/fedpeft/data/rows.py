"""Rows: from a data request to the tables that are trained and evaluated on, nothing decoded.

source -> splits -> (hold out) -> budget
"""

from __future__ import annotations

import itertools
import logging

import numpy as np
import numpy.typing as npt

from fedpeft.core import seeds
from fedpeft.core.errors import DataError
from fedpeft.data.conversations import conversation_columns, conversations_of
from fedpeft.data.labels import read_names, warn_of_near_names
from fedpeft.data.request import DataRequest
from fedpeft.data.source import choose_splits, read_source
from fedpeft.data.tables import (
    Table,
    column_of,
    draw_holdout,
    draw_stratified,
    required_column,
    select,
    values_of,
)
from fedpeft.data.targets import KINDS, read_targets
from fedpeft.data.texts import check_texts
from fedpeft.data.words import read_tags
from fedpeft.models.tasks import task_named

_log = logging.getLogger(__name__)

IntArray = npt.NDArray[np.int64]


def draw_budget(num_examples: int, request: DataRequest) -> IntArray:
    """Return the rows to train on, sorted: all of them without a budget.

    The draw is without replacement; with `fidelity = "paper"` it is with replacement, as in the
    paper's code.

    Raises:
      DataError: if the budget is not within 1 to the number of examples.
    """
    budget = request.budget
    if budget is None:
        return np.arange(num_examples)
    if not 1 <= budget <= num_examples:
        raise DataError(
            f"data.budget: found {budget}; allowed are 1 to the {num_examples} training examples"
        )
    rng = np.random.RandomState(seeds.derive(request.seed, "budget") % 2**32)
    return np.sort(rng.choice(num_examples, budget, replace=request.fidelity == "paper"))


def read_rows(request: DataRequest) -> tuple[Table, Table]:
    """Return the rows of the training and the evaluation table that `load_data` would use.

    Rows are held out and the budget is drawn, but nothing is decoded. The examples of a language
    model are blocks of tokens rather than rows.

    Raises:
      DataError: if the source or the budget is not possible.
    """
    found = choose_splits(read_source(request), request)
    train, test = train_and_evaluation(found, request)
    if task_named(request.task).targets == "tokens":
        return train, test
    return select(train, rows_to_train(draw_budget(len(train), request), request)), test


def check_rows(request: DataRequest) -> None:
    """Check splits, columns, labels, texts and clients as far as that shows without a model.

    Raises:
      DataError: for the first of them that cannot be used.
    """
    tables = train_and_evaluation(choose_splits(read_source(request), request), request)
    task = task_named(request.task)
    columns = conversation_columns(tables, request) if task.targets == "tokens" else None
    if columns is not None:
        for table in tables:
            conversations_of(table, columns)
    elif task.targets == "tags":
        words, tags = (required_column(tables, kind, request) for kind in ("text", "label"))
        read_tags(tables, words, tags, request)
    elif task.inputs is not None:
        kinds = ("prompt", "completion") if task.targets == "text" else (task.inputs,)
        names = [required_column(tables, kind, request) for kind in kinds]
        for table, name in itertools.product(tables, names if task.inputs == "text" else ()):
            check_texts(table.columns[name], table.place, blank=task.targets == "tokens")
    if task.inputs is not None and task.targets in KINDS:
        read_targets(task.targets, tables, request)
    owners_of(*tables, request)


def rows_to_train(drawn: IntArray, request: DataRequest) -> IntArray:
    """Return the rows that clients train on: the drawn ones; the first ones, as the paper does."""
    return np.arange(len(drawn)) if request.fidelity == "paper" else drawn


def train_and_evaluation(
    found: tuple[Table, Table | None, Table | None], request: DataRequest
) -> tuple[Table, Table]:
    """Return the training and the evaluation table; a missing split is held out of training.

    The evaluation table has at most `max_test` rows.
    """
    train, test, validation = found
    for split, table in (("training", train), ("test", test), ("validation", validation)):
        if table is not None and not len(table):
            raise DataError(
                f"data.source: the {split} split of {request.source!r} has no examples: fill it, "
                "or take it away"
            )
    if request.whole:
        return train, select(train, np.arange(min(1, len(train))))
    if test is None:
        train, test = _hold_out(train, request, fraction=0.2)
    if request.evaluate_on == "validation":
        train, test = (train, validation) if validation else _hold_out(train, request, fraction=0.1)
    return train, _at_most(test, request)


def owners_of(
    train: Table, test: Table, request: DataRequest
) -> tuple[list[str] | None, list[str] | None]:
    """Return the client of each row of both tables; None where the data name none.

    Raises:
      DataError: if the scheme is `natural` and there is no such column, or a value is missing.
    """
    natural = request.partition.scheme == "natural"
    column = column_of(train, "client", request, required=natural)
    if column is None:
        return None, None
    names = read_names(train, column)
    test_names = read_names(test, column) if column in test.columns else None
    if natural:
        warn_of_near_names(names, column, "clients")
        if strange := sorted({*(test_names or ())} - {*names}):
            shown = ", ".join(strange[:5]) + " ..." * (len(strange) > 5)
            _log.warning("data: clients of the test set that have no training rows: %s", shown)
    return names, test_names


def _at_most(test: Table, request: DataRequest) -> Table:
    """Return `max_test` rows of a table, in proportion to its classes; all if there are fewer."""
    if request.max_test is None or request.max_test >= len(test):
        return test
    if request.max_test < 1:
        raise DataError(f"data.max_test: found {request.max_test}; allowed is 1 or more")
    column = column_of(test, "label", request, required=False) if _by_class(request) else None
    groups = values_of(test.columns[column]) if column else [""] * len(test)
    return select(test, draw_stratified(groups, request.max_test))


def _by_class(request: DataRequest) -> bool:
    """Whether the values of a column of labels are classes, which a draw keeps in proportion."""
    return task_named(request.task).targets in ("class", "tokens")


def _hold_out(train: Table, request: DataRequest, *, fraction: float) -> tuple[Table, Table]:
    kinds = ["client", "label"] if request.partition.scheme == "natural" else ["label", "client"]
    kinds = kinds if _by_class(request) else ["client"]
    columns = [column_of(train, kind, request, required=False) for kind in kinds]
    column = next((name for name in columns if name is not None), None)
    groups = values_of(train.columns[column]) if column else [""] * len(train)
    kept, held = draw_holdout(groups, fraction=fraction, column=column)
    _log.info(
        "data: %s has no split of its own for this: held out %d of %d training examples, "
        "stratified by %s, from a fixed seed",
        request.source,
        len(held),
        len(train),
        column or "nothing",
    )
    return select(train, kept), select(train, held)
