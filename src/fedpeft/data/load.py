"""Loading: from an experiment's data request to a federated data set.

    source -> tables -> (hold out) -> budget -> decode or tokenise once -> partition -> Federated

The budget is drawn before the partition, so that the partition's label skew is that of the examples
on which clients train.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from torch import Tensor

from fedpeft.core.errors import DataError
from fedpeft.data.clips import ClipExamples, read_clips
from fedpeft.data.drawn import DrawnClients
from fedpeft.data.examples import ExampleSet, Federated
from fedpeft.data.images import InFolder, is_deep, read_pixels
from fedpeft.data.language import load_language
from fedpeft.data.packing import pack_clients
from fedpeft.data.partition import partition
from fedpeft.data.preprocessing import PicturePreprocessing, Preprocessing, TextPreprocessing
from fedpeft.data.request import DataRequest
from fedpeft.data.rows import (
    draw_budget,
    owners_of,
    rows_to_train,
    train_and_evaluation,
)
from fedpeft.data.schemes import row_of
from fedpeft.data.source import choose_splits, read_source
from fedpeft.data.tables import Column, Splits, Table, required_column, select
from fedpeft.data.targets import read_targets
from fedpeft.data.tensors import ImageExamples, TextExamples, TextPairs, flat_tokens
from fedpeft.data.texts import Tokenizer, load_tokenizer, tokenize
from fedpeft.data.transforms import canvas_of, view_of
from fedpeft.data.words import read_tags, tagged
from fedpeft.models.loaded import ImageInput, InputSpec, TextInput, VideoInput
from fedpeft.models.tasks import TASKS, Task, task_named

_log = logging.getLogger(__name__)

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class _Tables:
    train: Table
    test: Table
    full_scale: int


@dataclass(frozen=True)
class _Content:
    """Decoded tables, after the budget was drawn.

    Attributes:
      train: the training examples.
      test: the evaluation examples.
      augmented: whether training batches differ from epoch to epoch.
      preprocessing: how raw input became the tensors of `test`.
      owners: natural client of each row of (train, test), where the data names them.
      skew: labels that the partition is drawn from: those of `train`, except where `fidelity`
        repeats the first slip of the paper.
      labels: class of each row of `train`; None where they have no single class.
      num_labels: number of classes; None where there are none.
      names: names of the classes; None where the data has none.
      packed: most tokens of the rows into which each client's examples are packed; None leaves
        them.
    """

    train: ExampleSet
    test: ExampleSet
    augmented: bool
    preprocessing: Preprocessing
    owners: tuple[list[str] | None, list[str] | None]
    skew: IntArray
    labels: IntArray | None = None
    num_labels: int | None = None
    names: tuple[str, ...] | None = None
    packed: int | None = None


@dataclass(frozen=True)
class _Labelled:
    """The inputs and targets of one split, not decoded yet.

    Attributes:
      inputs: pictures, clips or texts.
      labels: [N] or [N, C].
      full_scale: pixel value of white.
      place: gives the words for where a row stands, for messages.
    """

    inputs: Column
    labels: Tensor
    full_scale: int
    place: Callable[[int], str]


_Decoded: TypeAlias = tuple[ExampleSet, ExampleSet, bool, Preprocessing]
"""(training examples, evaluation examples, whether training batches are augmented, how the
evaluation examples were made)."""

_Decode: TypeAlias = Callable[[_Labelled, _Labelled, DataRequest, InputSpec], _Decoded]


def load_data(request: DataRequest, inputs: InputSpec) -> Federated:
    """Load a data set for a model.

    >>> loaded = fedpeft.load_model(fedpeft.ModelRequest("preset:tiny-vit", num_labels=10))
    >>> clients = fedpeft.PartitionRequest(clients=20)
    >>> data = fedpeft.load_data(fedpeft.DataRequest("digits", partition=clients), loaded.inputs)
    >>> len(data.clients), data.num_labels
    (20, 10)

    Args:
      request: source, columns, transforms, budget and partition.
      inputs: the form in which the model takes its inputs.

    Raises:
      DataError: if the source, a column, a label, the budget or the partition is not possible.
      ModelError: if a text model has no tokenizer.
    """
    _check(request, inputs)
    loaded = load_splits(read_source(request), request, inputs)
    return replace(loaded, request=request)


def load_splits(splits: Splits, request: DataRequest, inputs: InputSpec) -> Federated:
    """Load a data set from tables in memory; otherwise like `load_data`."""
    _check(request, inputs)
    train, test = train_and_evaluation(choose_splits(splits, request), request)
    task = task_named(request.task)
    load = _LOADERS[task.inputs, task.targets]
    content = load(_Tables(train, test, splits.full_scale), request, inputs)
    own, test_own = content.owners
    scheme = request.partition.scheme
    natural = scheme == "natural"
    row = row_of(request.partition)
    if content.labels is None and row is not None and row.needs == "labels":
        raise DataError(
            f"data.partition.scheme: {scheme!r} needs labels, examples for {task.name} have no "
            "class; allowed are iid, quantity and natural"
        )
    examples = content.train
    clients = partition(content.skew, request.partition, own if natural else None)
    if content.packed is not None:
        examples, clients = _packed(examples, clients, content.packed)
    return Federated(
        train=examples,
        test=content.test,
        clients=clients,
        num_labels=content.num_labels,
        label_names=content.names,
        labels=content.labels,
        name=request.source,
        test_clients=_rows_by_name(test_own) if natural and test_own is not None else {},
        augmented=content.augmented,
        digest=splits.digest,
        preprocessing=content.preprocessing,
    )


def _check(request: DataRequest, inputs: InputSpec) -> None:
    for field, found, allowed in (
        ("fidelity", request.fidelity, (None, "paper")),
        ("evaluate_on", request.evaluate_on, ("test", "validation")),
    ):
        if found not in allowed:
            raise DataError(
                f"data.{field}: found {found!r}; allowed are {', '.join(map(str, allowed))}"
            )
    if request.task not in TASKS and not isinstance(request.task, Task):
        raise DataError(f"data.task: found {request.task!r}; allowed are {', '.join(TASKS)}")
    task = task_named(request.task)
    for key in ("chat_template", "learn", "truncation", "packing"):
        if getattr(request, key) is not None and not task.goes_on:
            raise DataError(
                f"data.{key}: found with the task {task.name}; it is for language models "
                "(causal-lm): leave the key out"
            )
    if (task.inputs, task.targets) not in _LOADERS:
        raise DataError(
            f"data: no files are read for the task {task.name}: pass a torch data set from Python"
        )
    wanted = _INPUTS[task.inputs]
    if not isinstance(inputs, wanted):
        kinds = {ImageInput: "pictures", TextInput: "texts", VideoInput: "clips"}
        raise DataError(
            f"data: the task {task.name} feeds {kinds[wanted]}, the model takes "
            f"{kinds.get(type(inputs), 'inputs of its own: pass a torch data set from Python')}"
        )


def _classification(
    decode: _Decode, kind: str, tables: _Tables, request: DataRequest, inputs: InputSpec
) -> _Content:
    """Load examples of the columns of one kind, each with a target."""
    both = (tables.train, tables.test)
    column = required_column(both, kind, request)
    targets = read_targets(task_named(request.task).targets, both, request)
    drawn = draw_budget(len(targets.train), request)
    rows = rows_to_train(drawn, request)
    table = select(tables.train, rows)
    train, test = (
        _Labelled(_located(each, column, kind), labels, tables.full_scale, each.place)
        for each, labels in ((table, targets.drawn(rows)), (tables.test, targets.test))
    )
    examples, test_examples, augmented, made = decode(train, test, request, inputs)
    return _Content(
        examples,
        test_examples,
        augmented,
        replace(made, labels=targets.shown),
        owners=owners_of(table, tables.test, request),
        skew=targets.skew[drawn],
        labels=None if targets.classes is None else targets.classes[rows],
        num_labels=targets.num_labels,
        names=targets.names,
    )


def _pictures(
    train: _Labelled, test: _Labelled, request: DataRequest, inputs: InputSpec
) -> _Decoded:
    assert isinstance(inputs, ImageInput), "checked"
    canvas = canvas_of(request.transforms, inputs, train.full_scale)
    pixels = read_pixels(train.inputs, canvas, place=train.place)
    test_pixels = read_pixels(test.inputs, canvas, white=pixels.full_scale, place=test.place)
    view = view_of(request.transforms, inputs, pixels)
    own_statistics = request.fidelity == "paper" and request.transforms.normalize == "dataset"
    test_view = view_of(request.transforms, inputs, test_pixels) if own_statistics else view
    examples = ImageExamples(pixels, train.labels, view)
    deep = is_deep(test.inputs[0])
    made = Preprocessing(PicturePreprocessing(canvas, test_view, pixels.full_scale, deep=deep))
    return examples, ImageExamples(test_pixels, test.labels, test_view), view.augmented, made


def _clips(train: _Labelled, test: _Labelled, request: DataRequest, inputs: InputSpec) -> _Decoded:
    assert isinstance(inputs, VideoInput), "checked"
    canvas = canvas_of(request.transforms, inputs.picture, train.full_scale)
    whole = request.transforms.frame_offset
    clips = read_clips(train.inputs, canvas, inputs.frames, whole=whole)
    test_clips = read_clips(test.inputs, canvas, inputs.frames, whole=False)
    view = view_of(request.transforms, inputs.picture, clips.pixels)
    examples = ClipExamples(clips, train.labels, view, whole)
    white = clips.pixels.full_scale
    made = Preprocessing(PicturePreprocessing(canvas, view, white, inputs.frames))
    return examples, ClipExamples(test_clips, test.labels, view), view.augmented or whole, made


def _texts(train: _Labelled, test: _Labelled, request: DataRequest, inputs: InputSpec) -> _Decoded:
    assert isinstance(inputs, TextInput), "checked"
    tokenizer = load_tokenizer(inputs, request.max_length)
    examples, test_examples = (
        TextExamples(
            *flat_tokens(tokenize(x.inputs, tokenizer, place=x.place)), x.labels, tokenizer.pad_id
        )
        for x in (train, test)
    )
    return examples, test_examples, False, _text_preprocessing(tokenizer)


def _tagged(tables: _Tables, request: DataRequest, inputs: InputSpec) -> _Content:
    """Load lists of words with a class for each word."""
    assert isinstance(inputs, TextInput), "checked"
    both = (tables.train, tables.test)
    words, column = (required_column(both, kind, request) for kind in ("text", "label"))
    tags, names = read_tags(both, words, column, request)
    tokenizer = load_tokenizer(inputs, request.max_length)
    rows = draw_budget(len(tables.train), request)
    drawn = select(tables.train, rows)
    train = tagged(drawn.columns[words], [tags[0][row] for row in rows], tokenizer, drawn.place)
    test = tagged(tables.test.columns[words], tags[1], tokenizer, tables.test.place)
    return _Content(
        train,
        test,
        augmented=False,
        preprocessing=replace(_text_preprocessing(tokenizer), labels=names),
        owners=owners_of(drawn, tables.test, request),
        skew=np.zeros(len(rows), np.int64),
        num_labels=len(names),
        names=names,
    )


def _pairs(tables: _Tables, request: DataRequest, inputs: InputSpec) -> _Content:
    """Load texts that are read, each with one that is written; both are cut at `max_length`."""
    assert isinstance(inputs, TextInput), "checked"
    both = (tables.train, tables.test)
    named = [required_column(both, kind, request) for kind in ("prompt", "completion")]
    tokenizer = load_tokenizer(inputs, request.max_length)
    drawn = select(tables.train, draw_budget(len(tables.train), request))
    train, test = (
        TextPairs(
            _read(table, named[0], tokenizer, ended=False),
            _read(table, named[1], tokenizer, ended=True),
        )
        for table in (drawn, tables.test)
    )
    return _Content(
        train,
        test,
        augmented=False,
        preprocessing=_text_preprocessing(tokenizer),
        owners=owners_of(drawn, tables.test, request),
        skew=np.zeros(len(train), np.int64),
    )


def _read(table: Table, column: str, tokenizer: Tokenizer, *, ended: bool) -> TextExamples:
    """Tokenise a column of texts; each ends with the end of text if a model is to write it."""
    tokens = tokenize(table.columns[column], tokenizer, place=table.place)
    end = getattr(tokenizer.encode, "eos_token_id", None)
    if ended and end is not None:
        room = tokenizer.max_length - 1
        tokens = [each if each[-1] == end else [*each[:room], end] for each in tokens]
    return TextExamples(*flat_tokens(tokens), None, tokenizer.pad_id)


def _language(tables: _Tables, request: DataRequest, inputs: InputSpec) -> _Content:
    """Load conversations or documents for a language model."""
    assert isinstance(inputs, TextInput), "checked"
    found = load_language((tables.train, tables.test), request, inputs)
    return _Content(
        train=found.train,
        test=found.test,
        augmented=False,
        preprocessing=_text_preprocessing(found.tokenizer, found.template),
        owners=found.owners,
        skew=np.zeros(len(found.train), np.int64),
        packed=found.tokenizer.max_length if found.packed else None,
    )


def _packed(
    examples: ExampleSet, clients: Mapping[str, IntArray], length: int
) -> tuple[ExampleSet, Mapping[str, IntArray]]:
    """Pack each client's examples; how many rows a client has, and its weight, change with it."""
    if isinstance(clients, DrawnClients):
        raise DataError(
            "data.packing: found true with data.partition.scheme = 'drawn', whose clients are "
            "drawn when they are used; choose another scheme, or set data.packing = false"
        )
    assert isinstance(examples, TextExamples), "only a language model's examples are packed"
    return pack_clients(examples, clients, length=length)


def _text_preprocessing(tokenizer: Tokenizer, template: str = "") -> Preprocessing:
    return Preprocessing(text=TextPreprocessing(tokenizer.max_length, tokenizer.pad_id, template))


def _located(table: Table, column: str, kind: str) -> Column:
    """Return a column; names of picture files count from the folder of the table."""
    values = table.columns[column]
    return InFolder(values, table.folder) if kind == "image" and table.folder else values


def _rows_by_name(names: Sequence[str]) -> dict[str, IntArray]:
    rows: dict[str, list[int]] = {}
    for row, name in enumerate(names):
        rows.setdefault(name, []).append(row)
    return {name: np.array(rows[name], np.int64) for name in sorted(rows)}


_INPUTS: Mapping[str | None, type[ImageInput | TextInput | VideoInput]] = {
    "image": ImageInput,
    "text": TextInput,
    "video": VideoInput,
}
_LOADERS: Mapping[tuple[str | None, str], Callable[[_Tables, DataRequest, InputSpec], _Content]] = {
    ("image", "class"): functools.partial(_classification, _pictures, "image"),
    ("text", "class"): functools.partial(_classification, _texts, "text"),
    ("text", "number"): functools.partial(_classification, _texts, "text"),
    ("text", "classes"): functools.partial(_classification, _texts, "text"),
    ("text", "tags"): _tagged,
    ("text", "text"): _pairs,
    ("text", "tokens"): _language,
    ("video", "class"): functools.partial(_classification, _clips, "video"),
}
"""The loader of a task, by the kind of its inputs and of its targets."""
