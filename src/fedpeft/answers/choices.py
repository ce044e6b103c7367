"""Multiple choice by log-likelihood: which of some answers does the model find most probable?

    log p(" " + choice | question)   summed over the choice's tokens      -> accuracy
    the same, per character of the choice                                 -> accuracy_norm

The arithmetic is that of the Language Model Evaluation Harness (`acc` and `acc_norm`): question and
choice are encoded together and cut where the question's own tokens end; spaces at the end of a
question belong to the choice; texts that are too long lose their beginning.

Reference: Biderman et al., Lessons from the Trenches on Reproducible Evaluation of Language Models,
2024. Legend: C choices, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from fedpeft.core.errors import DataError, ModelError
from fedpeft.core.text import shown
from fedpeft.data.files import READERS
from fedpeft.data.tables import Table, values_of
from fedpeft.models.loaded import TextInput
from fedpeft.tuning.tuned import TunedModel

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_COLUMNS: Mapping[str, tuple[str, ...]] = {
    "question": ("question", "prompt", "query", "context", "text"),
    "choices": ("choices", "options", "endings"),
    "answer": ("answer", "label", "gold", "answerkey", "target", "answer_idx"),
}
_LETTERS = "abcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True)
class Item:
    """A question with some answers, one of which is right.

    Attributes:
      question: what the model reads first, as it stands.
      choices: the answers; at least two, none empty.
      answer: place of the right one, from 0.
    """

    question: str
    choices: tuple[str, ...]
    answer: int


@dataclass(frozen=True)
class ChoiceFigures:
    """How many items a model gets right.

    Attributes:
      items: number of items.
      accuracy: share where the right choice has the largest log-likelihood.
      accuracy_norm: share where it has the largest log-likelihood per character.
    """

    items: int
    accuracy: float
    accuracy_norm: float


def read_items(file: Path) -> list[Item]:
    """Read items from a jsonl or parquet file.

    It has columns `question`, `choices` (a list of texts, or a table with such a list as `text`)
    and `answer` (a place from 0, a letter from A, or the text of the right choice).

    Raises:
      DataError: if the file cannot be read, or for the first row that is no item.
    """
    where = "answers.choices"
    if file.suffix.lower() not in (".jsonl", ".parquet"):
        raise DataError(f"{where}: {file} is no .jsonl or .parquet file, which hold lists")
    if not file.is_file():
        raise DataError(f"{where}: there is no file {str(file)!r}")
    try:
        table = READERS[file.suffix.lower()](file)["train"]
    except DataError as error:
        raise DataError(str(error).replace("data.source", where, 1)) from error
    columns = {kind: values_of(table.columns[_column(file, table, kind)]) for kind in _COLUMNS}
    rows = zip(columns["question"], columns["choices"], columns["answer"], strict=True)
    items = [_item(f"{where}: {table.place(i)}", *row) for i, row in enumerate(rows)]
    if not items:
        raise DataError(f"{where}: {file} has no items")
    return items


def score_items(
    tuned: TunedModel, tokenizer: PreTrainedTokenizerBase, items: Sequence[Item]
) -> ChoiceFigures:
    """Answer items with the live delta of a language model.

    Raises:
      ModelError: if the model reads no text, or the tokenizer has no token to begin with.
    """
    right = right_norm = 0
    for item in items:
        likely_C = log_likelihoods(tuned, tokenizer, item)
        per_letter_C = [log / len(text) for log, text in zip(likely_C, item.choices, strict=True)]
        right += _largest(likely_C) == item.answer
        right_norm += _largest(per_letter_C) == item.answer
    return ChoiceFigures(len(items), right / len(items), right_norm / len(items))


@torch.inference_mode()
def log_likelihoods(
    tuned: TunedModel, tokenizer: PreTrainedTokenizerBase, item: Item
) -> list[float]:
    """Return the log-likelihood of each choice after its question, in nats.

    Raises:
      ModelError: if the model reads no text, or the tokenizer has no token to begin with.
    """
    inputs, model = tuned.loaded.inputs, tuned.model.eval()
    if not isinstance(inputs, TextInput):
        raise ModelError(f"{tuned.loaded.source}: reads no texts, so no choice has a likelihood")
    pairs = [_encoded(tokenizer, item.question, f" {choice}") for choice in item.choices]
    rows = [(*before, *after)[-(inputs.max_length + 1) :] for before, after in pairs]
    longest = max(map(len, rows)) - 1
    device = next(model.parameters()).device
    ids_CT = torch.zeros((len(rows), longest), dtype=torch.int64)
    mask_CT = torch.zeros_like(ids_CT)
    for place, row in enumerate(rows):
        ids_CT[place, : len(row) - 1] = torch.tensor(row[:-1])
        mask_CT[place, : len(row) - 1] = 1
    found = model(input_ids=ids_CT.to(device), attention_mask=mask_CT.to(device), use_cache=False)
    logs_CTV = F.log_softmax(found.logits.float(), dim=-1).cpu()
    totals = []
    for place, (row, (_, after)) in enumerate(zip(rows, pairs, strict=True)):
        kept = min(len(after), len(row) - 1)
        targets = torch.tensor(row[-kept:])
        steps = torch.arange(len(row) - 1 - kept, len(row) - 1)
        totals.append(float(logs_CTV[place, steps, targets].sum()))
    return totals


def _encoded(
    tokenizer: PreTrainedTokenizerBase, question: str, choice: str
) -> tuple[list[int], list[int]]:
    """Return the tokens of question and choice; the choice takes the question's last spaces."""
    stem = question.rstrip()
    choice = question[len(stem) :] + choice
    if not stem:
        first = tokenizer.bos_token_id
        first = tokenizer.eos_token_id if first is None else first
        if first is None:
            raise ModelError(
                "answers.choices: a question is empty, and the tokenizer has no token to begin "
                "with: write the question out"
            )
        return [int(first)], _tokens(tokenizer, choice, special=False)
    before = _tokens(tokenizer, stem)
    return before, _tokens(tokenizer, stem + choice)[len(before) :]


def _tokens(tokenizer: PreTrainedTokenizerBase, text: str, *, special: bool = True) -> list[int]:
    first = tokenizer.bos_token
    special = special and not (isinstance(first, str) and text.startswith(first))
    return list(tokenizer.encode(text, add_special_tokens=special))


def _largest(numbers: Sequence[float]) -> int:
    return max(range(len(numbers)), key=numbers.__getitem__)


def _column(file: Path, table: Table, kind: str) -> str:
    names = {name.casefold(): name for name in reversed(list(table.columns))}
    for usual in _COLUMNS[kind]:
        if usual in names:
            return names[usual]
    raise DataError(
        f"answers.choices: {file} has the columns {', '.join(table.columns) or 'none'}; a column "
        f"{_COLUMNS[kind][0]!r} is needed (or one of {', '.join(_COLUMNS[kind][1:])})"
    )


def _item(where: str, question: object, choices: object, answer: object) -> Item:
    if isinstance(choices, Mapping):
        labels = [str(each) for each in choices.get("label", ())]
        answer = labels.index(answer) if isinstance(answer, str) and answer in labels else answer
        choices = choices.get("text")
    texts = tuple(_texts_in(choices))
    if not isinstance(question, str) or len(texts) < 2 or not all(texts):
        raise DataError(
            f"{where}: a text `question` and a list `choices` of two texts or more are needed; "
            f"found {shown(question)} and {shown(choices)}"
        )
    place = _place(answer, texts)
    if place is None:
        raise DataError(
            f"{where}: `answer` is {shown(answer)}; allowed are 0 to {len(texts) - 1}, a letter "
            f"from A to {_LETTERS[len(texts) - 1].upper()}, or the text of one of the choices"
        )
    return Item(question, texts, place)


def _texts_in(choices: object) -> Iterator[str]:
    if isinstance(choices, Sequence) and not isinstance(choices, str):
        yield from (each if isinstance(each, str) else "" for each in choices)


def _place(answer: object, choices: Sequence[str]) -> int | None:
    """Return the place that an answer names; None where it names none."""
    if isinstance(answer, str) and answer in choices:
        return choices.index(answer)
    if isinstance(answer, str) and answer.strip().isdecimal():
        answer = int(answer)
    if isinstance(answer, str):
        letter = answer.strip().casefold()
        place = _LETTERS.find(letter) if len(letter) == 1 else -1
    else:
        whole = isinstance(answer, int) and not isinstance(answer, bool)
        place = int(answer) if whole else -1  # type: ignore[call-overload]  # a whole number
    return place if 0 <= place < len(choices) else None
