"""Predictions for single inputs, by a finished model and by the model before training.

    classifiers, regressions, taggers   what `readings.py` makes of their logits
    models that write                   the text

The inputs become tensors as the run's own did: by what its folder records of its preprocessing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor

from fedpeft.answers.generate import Decoding, generate, stop_tokens
from fedpeft.answers.questions import text_of
from fedpeft.core.errors import DataError, ModelError
from fedpeft.data.clips import ClipExamples, read_clips
from fedpeft.data.conversations import ASSISTANT, Message
from fedpeft.data.examples import ExampleSet
from fedpeft.data.images import read_pixels
from fedpeft.data.preprocessing import PicturePreprocessing, Preprocessing
from fedpeft.data.tensors import ImageExamples, TextExamples, flat_tokens
from fedpeft.data.texts import load_tokenizer, tokenize
from fedpeft.data.words import tagged
from fedpeft.inference.inputs import OF_DATA, Input
from fedpeft.inference.prompts import prompts_of
from fedpeft.inference.readings import OF_LOGITS, Reading, forward, tags_of, write
from fedpeft.models.loaded import TextInput
from fedpeft.models.scores import Batch
from fedpeft.models.tasks import TASKS
from fedpeft.runs.load import BeforeAndAfter
from fedpeft.tuning.tuned import TunedModel

_BATCH = 16
_NOT_A_WORD = -100


@dataclass(frozen=True)
class Prediction:
    """What a model makes of an input.

    Attributes:
      input: the input's name.
      after: by the finished model.
      before: by the model before round 1; None where that is not known, or was not asked for.
    """

    input: str
    after: Reading
    before: Reading | None = None

    def as_json(self) -> dict[str, object]:
        """Return the prediction as `--json` prints it."""
        parts = {"": self.after, "before": self.before}
        found: dict[str, object] = {"input": self.input}
        for key, part in parts.items():
            if part is None:
                continue
            fields = {"answer": part} if isinstance(part, str) else dict(vars(part))
            found |= {key: fields} if key else fields
        return found


def predict(
    model: BeforeAndAfter, inputs: Sequence[Input], decoding: Decoding, *, both: bool
) -> Iterator[Prediction]:
    """Yield a prediction for each input, in order.

    Args:
      model: a finished model; it holds the weights of `after` when all is done.
      inputs: see `read_inputs`.
      decoding: how answers are generated, by a language model.
      both: whether the model before training predicts too, where it is known.

    Raises:
      DataError: if an input cannot be read.
      ModelError: if the run did not record how inputs become tensors.
    """
    states = [model.before, model.after] if both and model.before else [model.after]
    whole = answers_of(model, decoding) if _answers(model.tuned) else _readings_of(model, decoding)
    for start in range(0, len(inputs), _BATCH):
        part = inputs[start : start + _BATCH]
        found = []
        for state in states:
            model.take(state)
            found.append(whole(part))
        for each, *predicted in zip(part, *found, strict=True):
            yield Prediction(each.name, predicted[-1], predicted[0] if predicted[1:] else None)


def answers_of(
    model: BeforeAndAfter, decoding: Decoding
) -> Callable[[Sequence[Input]], list[Reading]]:
    """Return what answers prompts with the weights that the model holds when it is called."""
    tuned = model.tuned
    prompts = prompts_of(tuned.loaded, model.preprocessing)
    stops = stop_tokens(tuned.loaded, prompts.tokenizer, prompts.template)

    def answer(inputs: Sequence[Input]) -> list[Reading]:
        tokens = [prompts.tokens(_prompt(each), each.name) for each in inputs]
        found = (list(generate(tuned, each, stops, decoding)) for each in tokens)
        return [text_of(prompts.tokenizer, each) for each in found]

    return answer


def _prompt(given: Input) -> str | list[Message]:
    if isinstance(given.value, str):
        return given.value
    assert isinstance(given.value, Sequence), "read_inputs gives texts and conversations"
    turns = list(given.value)
    while turns and turns[-1]["role"] == ASSISTANT:
        turns.pop()  # the answer itself
    if not turns:
        raise DataError(f"INPUT: {given.name} asks nothing: all its turns are the assistant's")
    return turns


def _answers(tuned: TunedModel) -> bool:
    return tuned.loaded.task.goes_on


def _readings_of(
    model: BeforeAndAfter, decoding: Decoding
) -> Callable[[Sequence[Input]], list[Reading]]:
    tuned, made = model.tuned, model.preprocessing
    if tuned.loaded.task.name not in TASKS or made is None:
        raise ModelError(
            f"{tuned.loaded.source}: the run did not record how inputs become tensors, because its "
            "model or its data were passed from Python; predict with `fedpeft.load(RUN)`"
        )

    def read(inputs: Sequence[Input]) -> list[Reading]:
        try:
            return _read(tuned, made, inputs, decoding)
        except DataError as error:
            raise DataError(OF_DATA.sub("INPUT:", str(error), count=1)) from error

    return read


def _read(
    tuned: TunedModel, made: Preprocessing, inputs: Sequence[Input], decoding: Decoding
) -> list[Reading]:
    """Return what the model makes of inputs, with the weights that it holds."""
    targets, values = tuned.loaded.task.targets, [each.value for each in inputs]
    place = [each.name for each in inputs].__getitem__
    if made.picture is not None:
        labels = torch.zeros(len(values), dtype=torch.int64)
        examples = _pictures(made.picture, values, labels, place)
        return OF_LOGITS[targets](forward(tuned, _batch(examples)), made.labels)
    assert isinstance(tuned.loaded.inputs, TextInput), "of texts"
    tokenizer = load_tokenizer(tuned.loaded.inputs, made.text.max_length if made.text else None)
    if targets == "tags":
        words = [_words(value) for value in values]
        batch = _batch(tagged(words, [[0] * len(each) for each in words], tokenizer, place))
        first_BT = batch["labels"] != _NOT_A_WORD
        return tags_of(forward(tuned, batch), first_BT, words, made.labels)
    tokens = tokenize(values, tokenizer, place=place)
    pad = made.text.pad_id if made.text else tokenizer.pad_id
    labels = torch.zeros(len(values), dtype=torch.int64)
    batch = _batch(TextExamples(*flat_tokens(tokens), labels, pad))
    if targets == "text":
        return write(tuned, batch, tokenizer.encode, decoding)
    return OF_LOGITS[targets](forward(tuned, batch), made.labels)


def _batch(examples: ExampleSet) -> Batch:
    return examples.batch(range(len(examples)), seed=None)


def _words(value: object) -> list[str]:
    """Return the words of an input: a list of them, or a text that blanks divide."""
    return value.split() if isinstance(value, str) else list(cast("list[str]", value))


def _pictures(
    made: PicturePreprocessing, values: list[object], labels: Tensor, place: Callable[[int], str]
) -> ExampleSet:
    files = replace(made.canvas, full_scale=255)  # a file's white, whatever that of the run's data
    if made.frames is not None:
        clips = read_clips(values, files, made.frames, whole=False)
        return ClipExamples(clips, labels, made.view)
    pixels = read_pixels(values, files, white=made.white, place=place)
    return ImageExamples(pixels, labels, made.view)
