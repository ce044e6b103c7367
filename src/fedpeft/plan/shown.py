"""Examples as a model gets them: the tokens of each, and which of them are learnt.

They are taken from the tensors of the training batches, not from the source: what is cut off, left
out or packed is shown as it is.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import Tensor

from fedpeft.build.model import load_run_data, model_request
from fedpeft.data.examples import Federated
from fedpeft.data.tensors import TextPairs
from fedpeft.experiment.experiment import Experiment
from fedpeft.experiment.resolve import resolve
from fedpeft.models.loaded import TextInput
from fedpeft.models.padding import open_tokenizer
from fedpeft.models.source import sketch_model
from fedpeft.models.tasks import Batch

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Part:
    """Tokens that follow each other and are all read, or all learnt.

    Attributes:
      text: what they stand for.
      ids: their numbers.
      learnt: whether the model learns to produce them.
    """

    text: str
    ids: tuple[int, ...]
    learnt: bool


@dataclass(frozen=True)
class ShownExample:
    """An example of a client.

    Attributes:
      client: its name.
      row: its row of the training table.
      parts: of texts, in order; () for other inputs.
      shapes: shape of each tensor but those of a text.
      label: name or number of its class; None for a language model.
    """

    client: str
    row: int
    parts: tuple[Part, ...] = ()
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    label: str | None = None

    @property
    def num_tokens(self) -> int:
        """Number of tokens."""
        return sum(len(part.ids) for part in self.parts)

    @property
    def num_learnt(self) -> int:
        """Number of tokens that are learnt."""
        return sum(len(part.ids) for part in self.parts if part.learnt)

    def as_json(self) -> dict[str, object]:
        """Return one JSON object."""
        return {
            "client": self.client,
            "row": self.row,
            "tokens": self.num_tokens,
            "learnt": self.num_learnt,
            "parts": [
                {"text": each.text, "ids": list(each.ids), "learnt": each.learnt}
                for each in self.parts
            ],
            "shapes": {name: list(shape) for name, shape in self.shapes.items()},
            "label": self.label,
        }


@dataclass(frozen=True)
class ShownData:
    """Some examples of an experiment.

    Attributes:
      source: name of the data.
      num_rows: number of training examples of all clients.
      num_clients: number of clients.
      packed: whether rows hold several examples, each of which is shown by itself.
      examples: the shown ones.
    """

    source: str
    num_rows: int
    num_clients: int
    packed: bool
    examples: tuple[ShownExample, ...]

    def as_json(self) -> dict[str, object]:
        """Return one JSON object."""
        return {
            "source": self.source,
            "rows": self.num_rows,
            "clients": self.num_clients,
            "packed": self.packed,
            "examples": [each.as_json() for each in self.examples],
        }


def show_examples(experiment: Experiment, count: int) -> ShownData:
    """Return the first examples of an experiment's clients, in turn.

    Args:
      experiment: resolved or not.
      count: number of rows, >= 1.

    Raises:
      ConfigError: if the data cannot be loaded.
    """
    resolved = resolve(experiment)
    data = load_run_data(resolved)
    inputs = sketch_model(model_request(resolved, experiment.model.num_labels or 2)).inputs
    tokenizer = open_tokenizer(inputs.folder) if isinstance(inputs, TextInput) else None
    found = [
        example
        for client, row in itertools.islice(_in_turn(data), count)
        for example in _examples(data, client, row, tokenizer)
    ]
    packed = "position_ids" in data.train.batch([0], seed=None)
    return ShownData(data.name, len(data.train), len(data.clients), packed, tuple(found))


def _in_turn(data: Federated) -> Iterator[tuple[str, int]]:
    """Yield the first row of each client, then the second of each, and so on."""
    place = 0
    while True:
        some = [(client, int(rows[place])) for client, rows in data.clients.items()
                if len(rows) > place]  # fmt: skip
        if not some:
            return
        yield from some
        place += 1


def _examples(
    data: Federated, client: str, row: int, tokenizer: PreTrainedTokenizerBase | None
) -> Iterator[ShownExample]:
    batch = data.train.batch([row], seed=None)
    label = _label(data, batch["labels"])
    if tokenizer is None or "input_ids" not in batch:
        shapes = {name: tuple(value.shape[1:]) for name, value in batch.items() if name != "labels"}
        yield ShownExample(client, row, shapes=shapes, label=label)
        return
    if isinstance(data.train, TextPairs):
        written = batch["labels"][0]
        sides = ((batch["input_ids"][0], False), (written[written != -100], True))
        parts = tuple(_part(ids.tolist(), tokenizer, learnt=learnt) for ids, learnt in sides)
        yield ShownExample(client, row, parts)
        return
    length = int(batch["attention_mask"][0].sum())
    starts = [0]
    if "position_ids" in batch:
        starts = (batch["position_ids"][0, :length] == 0).nonzero().flatten().tolist()
    for start, stop in itertools.pairwise([*starts, length]):
        parts = tuple(_parts(batch, slice(start, stop), tokenizer))
        yield ShownExample(client, row, parts, label=label)


def _label(data: Federated, labels: Tensor) -> str | None:
    if labels.ndim != 1:
        return None
    number = int(labels[0])
    return data.label_names[number] if data.label_names else str(number)


def _parts(batch: Batch, where: slice, tokenizer: PreTrainedTokenizerBase) -> Iterator[Part]:
    ids, labels = batch["input_ids"][0, where].tolist(), batch["labels"]
    marks = (labels[0, where] != -100).tolist() if labels.ndim == 2 else [False] * len(ids)
    if marks:
        marks[0] = False  # nothing comes before it
    for learnt, pairs in itertools.groupby(zip(marks, ids, strict=True), key=lambda pair: pair[0]):
        yield _part([token for _, token in pairs], tokenizer, learnt=learnt)


def _part(ids: list[int], tokenizer: PreTrainedTokenizerBase, *, learnt: bool) -> Part:
    text = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    return Part(str(text), tuple(ids), learnt)
