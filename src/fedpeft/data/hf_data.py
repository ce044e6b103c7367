"""Data sets of the `datasets` library in memory, read like the same data in a folder.

DatasetDict               splits by their names
{client: Dataset}         exactly these clients; a test set of the server's, or rows held out
{client: DatasetDict}     exactly these clients, each with a test set of its own
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, TypeAlias

from fedpeft.core.errors import DataError
from fedpeft.data.examples import Federated
from fedpeft.data.files import tables_of
from fedpeft.data.folders import refuse_splits_as_clients
from fedpeft.data.load import load_splits
from fedpeft.data.request import DataRequest
from fedpeft.data.schemes import PartitionRequest
from fedpeft.data.tables import Splits
from fedpeft.models.loaded import LoadedModel, TextInput, VideoInput
from fedpeft.models.tasks import (
    IMAGE_CLASSIFICATION,
    TEXT_CLASSIFICATION,
    VIDEO_CLASSIFICATION,
    Task,
)

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict


Source: TypeAlias = "Dataset | DatasetDict | Mapping[str, Dataset | DatasetDict]"


def from_datasets(
    source: Source,
    model: LoadedModel,
    request: DataRequest | None = None,
    *,
    test: Dataset | None = None,
) -> Federated:
    """Make a federated data set of data sets of the `datasets` library, for a model.

    Pictures are decoded and texts tokenised for the model, as in `load_data`.

        from_datasets(load_dataset("uoft-cs/cifar100"), loaded)
        from_datasets({"site-a": a, "site-b": b}, loaded, test=held_back)

    >>> import datasets, numpy
    >>> pixels, digits = numpy.zeros((10, 8, 8), "uint8"), [0, 1] * 5
    >>> site = datasets.Dataset.from_dict({"image": list(pixels), "label": digits})
    >>> loaded = fedpeft.load_model(fedpeft.ModelRequest("preset:tiny-vit", num_labels=2))
    >>> data = fedpeft.from_datasets({"site-a": site, "site-b": site}, loaded)
    >>> {name: len(rows) for name, rows in data.clients.items()}
    {'site-a': 8, 'site-b': 8}

    Args:
      source: a data set with or without splits, or a mapping from client names to such data sets.
        Splits are found by their names; all clients need the same splits.
      model: the model; its inputs and its task decide how examples become tensors. Pass
        `tuned.loaded` of a tuned model.
      request: columns, transforms, splits, budget and partition; its source and task are ignored,
        and its partition too where `source` maps clients to data sets.
      test: the server's test set; None is the source's own, else 20 % of the training rows.

    Raises:
      DataError: if a data set is streamed, empty or has a transform of its own; if columns or
        splits of clients differ; and as for `load_data`.
    """
    import datasets

    request = request or DataRequest()
    if isinstance(source, Mapping) and not isinstance(source, datasets.DatasetDict):
        splits, request = _of_clients(source, request)
    else:
        splits = _splits(source, "source")
    if test is not None:
        splits = {**splits, request.test_split or "test": _plain(test, "test")}
    first = next(iter(splits.values()))
    named = dataclasses.replace(
        request, source=first.info.dataset_name or type(first).__name__, task=_task(model)
    )
    return load_splits(Splits(tables_of(datasets.DatasetDict(splits))), named, model.inputs)


def _of_clients(
    source: Mapping[str, Dataset | DatasetDict], request: DataRequest
) -> tuple[dict[str, Dataset], DataRequest]:
    """Join the clients' rows, with a column that names the client."""
    import datasets

    refuse_splits_as_clients([*map(str, source)], "from_datasets")
    clients = {str(name): _splits(part, f"client {name!r}") for name, part in source.items()}
    names = {client: sorted(splits) for client, splits in clients.items()}
    if len({tuple(found) for found in names.values()}) != 1:
        shown = "; ".join(f"{client}: {', '.join(found)}" for client, found in names.items())
        raise DataError(f"from_datasets: clients need the same splits, at least one; found {shown}")
    used = {name for splits in clients.values() for s in splits.values() for name in s.column_names}
    column = "client" if "client" not in used else "fedpeft_client"
    joined = {}
    for split in next(iter(clients.values())):
        parts = [
            splits[split].add_column(column, [client] * len(splits[split]))
            for client, splits in clients.items()
        ]
        try:
            joined[split] = datasets.concatenate_datasets(parts)
        except ValueError as error:
            raise DataError(
                f"from_datasets: columns or class names of the clients differ: {error}"
            ) from error
    return joined, dataclasses.replace(
        request,
        columns=dataclasses.replace(request.columns, client=column),
        partition=PartitionRequest("natural", None, min_examples=1),
    )


def _splits(source: Dataset | DatasetDict, where: str) -> dict[str, Dataset]:
    import datasets

    found = source if isinstance(source, datasets.DatasetDict) else {"train": source}
    return {str(name): _plain(split, f"{where}, split {name!r}") for name, split in found.items()}


def _plain(split: Dataset, where: str) -> Dataset:
    """Return a split without its format, which changes the type of values.

    Raises:
      DataError: if the split cannot be read row by row.
    """
    import datasets

    if not isinstance(split, datasets.Dataset):
        raise DataError(
            f"from_datasets: {where} is a {type(split).__name__}; allowed are Dataset and "
            "DatasetDict of `datasets`, not streamed; for torch data sets use from_torch"
        )
    if split.format["type"] == "custom":
        raise DataError(
            f"from_datasets: {where} has a transform of its own, which would be lost; pass it to "
            "from_torch, or undo it with `reset_format()`"
        )
    if not len(split):
        raise DataError(f"from_datasets: {where} has no rows")
    return split.with_format(None)


def _task(model: LoadedModel) -> Task:
    """Return the task whose examples a model takes; by its inputs for a task of the user's own."""
    if model.task.inputs is not None:
        return model.task
    kinds = {TextInput: TEXT_CLASSIFICATION, VideoInput: VIDEO_CLASSIFICATION}
    found = (task for kind, task in kinds.items() if isinstance(model.inputs, kind))
    return next(found, IMAGE_CLASSIFICATION)
