"""What a model makes of a batch: a class, a number, some classes, tags of words, or a text.

targets   class         number   classes                 tags                 text
reading   Label         Number   Labels                  Tags                 the text itself
          cat 0.93      3.21     a 0.93, b 0.71          Ada/PER wrote/O
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor

from fedpeft.answers.generate import Decoding
from fedpeft.answers.questions import text_of
from fedpeft.core import seeds
from fedpeft.models.scores import Batch
from fedpeft.tuning.tuned import TunedModel

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Label:
    """The prediction of a classifier.

    Attributes:
      label: name of the most probable class, or its number where the run knows no names.
      probability: 0 to 1.
    """

    label: str
    probability: float

    def __str__(self) -> str:
        """Return it as the terminal shows it."""
        return f"{self.label} {self.probability:.3f}"


@dataclass(frozen=True)
class Number:
    """The prediction of a regression."""

    number: float

    def __str__(self) -> str:
        """Return it as the terminal shows it."""
        return f"{self.number:.4g}"


@dataclass(frozen=True)
class Labels:
    """The classes that a model says yes to: name -> probability, 0.5 to 1."""

    labels: Mapping[str, float]

    def __str__(self) -> str:
        """Return them as the terminal shows them."""
        return ", ".join(f"{name} {p:.3f}" for name, p in self.labels.items()) or "none"


@dataclass(frozen=True)
class Tags:
    """The tag of each word; words beyond the longest text of the run have none."""

    words: tuple[str, ...]
    tags: tuple[str, ...]

    def __str__(self) -> str:
        """Return them as the terminal shows them."""
        return " ".join(f"{w}/{t}" for w, t in zip(self.words, self.tags, strict=False))


Reading: TypeAlias = Label | Number | Labels | Tags | str
"""What a model makes of one input; a text is the answer of a model that writes."""


def label(logits_BC: Tensor, names: Sequence[str]) -> list[Reading]:
    """Return the most probable class of each row of logits."""
    chances_BC = logits_BC.softmax(-1)
    best_B = chances_BC.argmax(-1).tolist()
    return [
        Label(_name(names, c), float(row[c])) for c, row in zip(best_B, chances_BC, strict=True)
    ]


def number(logits_BC: Tensor, names: Sequence[str]) -> list[Reading]:
    """Return the number of each row of logits."""
    return [Number(float(value)) for value in logits_BC.flatten()]


def choose(logits_BC: Tensor, names: Sequence[str]) -> list[Reading]:
    """Return the classes of each row of logits whose probability is at least a half."""
    return [
        Labels({_name(names, c): float(p) for c, p in enumerate(row) if p >= 0.5})
        for row in logits_BC.sigmoid()
    ]


OF_LOGITS: Mapping[str, Callable[[Tensor, Sequence[str]], list[Reading]]] = {
    "class": label,
    "number": number,
    "classes": choose,
}
"""Kind of targets -> what reads logits [B, C]."""


def tags_of(
    logits_BTC: Tensor, first_BT: Tensor, words: Sequence[Sequence[str]], names: Sequence[str]
) -> list[Reading]:
    """Return the tags of the words of each row.

    Args:
      logits_BTC: of each token.
      first_BT: whether a token is the first of a word.
      words: of each row.
      names: of the tags.
    """
    best_BT = logits_BTC.argmax(-1)
    found: list[Reading] = []
    for row, text in enumerate(words):
        tags = [_name(names, int(c)) for c in best_BT[row][first_BT[row]]]
        found.append(Tags(tuple(text), tuple(tags)))
    return found


@torch.inference_mode()
def forward(tuned: TunedModel, batch: Batch) -> Tensor:
    """Return a model's logits, float32 on the CPU."""
    device = next(tuned.model.parameters()).device
    tensors = {name: value.to(device) for name, value in batch.items() if name != "labels"}
    logits: Tensor = tuned.model.eval()(**tensors).logits
    return logits.float().cpu()


@torch.inference_mode()
def write(
    tuned: TunedModel, batch: Batch, tokenizer: PreTrainedTokenizerBase, decoding: Decoding
) -> list[Reading]:
    """Return the text that a model of two stacks writes for each text that it reads."""
    device = next(tuned.model.parameters()).device
    drawn = {"do_sample": True, "temperature": decoding.temperature}
    with seeds.isolated(seeds.derive(decoding.seed, "answer")):
        found = tuned.model.eval().generate(  # type: ignore[operator]  # of transformers
            input_ids=batch["input_ids"].to(device),
            attention_mask=batch["attention_mask"].to(device),
            max_new_tokens=decoding.max_new_tokens,
            num_beams=1,
            **(drawn if decoding.temperature else {"do_sample": False}),
        )
    return [text_of(tokenizer, row.tolist()) for row in found]


def _name(names: Sequence[str], place: int) -> str:
    return names[place] if place < len(names) else str(place)
