"""Questions: what stands before the last learnt tokens of an example is asked, these are expected.

    tokens   <s> Q u e s t i o n ? A n s w e r </s>
    labels    -  -  -  -  -  -  -  A n s w e r </s>        "-": -100, not learnt
              └────── prompt ────┘ └── reference ──┘

An example of which everything is learnt, as of plain documents, asks nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedpeft.data.examples import ExampleSet

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_NOT_LEARNT = -100


@dataclass(frozen=True)
class Question:
    """The prompt and the expected answer of an example.

    Attributes:
      row: of the example in its table.
      prompt: tokens before the answer.
      reference: tokens of the answer.
    """

    row: int
    prompt: tuple[int, ...]
    reference: tuple[int, ...]


def question_of(examples: ExampleSet, row: int) -> Question | None:
    """Return the question of an example; None where it asks nothing."""
    batch = examples.batch([row], seed=None)
    if "attention_mask" in batch:
        known = batch["attention_mask"].reshape(1, -1).bool()
    else:
        known = batch["input_ids"] == batch["input_ids"]
    tokens = batch["input_ids"][known].tolist()
    labels = batch["labels"][known].tolist()
    learnt = [i for i, label in enumerate(labels) if label != _NOT_LEARNT]
    if not learnt:
        return None
    end = learnt[-1] + 1
    start = end
    while start and labels[start - 1] != _NOT_LEARNT:
        start -= 1
    if start < 2:  # the first token of a document is never learnt, for want of one before it
        return None
    return Question(row, tuple(tokens[:start]), tuple(tokens[start:end]))


def text_of(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int]) -> str:
    """Return tokens as text, without special tokens and white space at its ends."""
    found = tokenizer.decode(list(tokens), skip_special_tokens=True)
    assert isinstance(found, str), "one list of tokens gives one text"
    return found.strip()
