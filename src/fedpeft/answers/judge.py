"""Judging a language model: it answers questions and chooses among given answers.

questions ──generate──> answers ──scores against the references──> mean of each score
items     ──log-likelihoods──> accuracy, accuracy_norm
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fedpeft.answers.choices import ChoiceFigures, Item, score_items
from fedpeft.answers.generate import Decoding, generate
from fedpeft.answers.questions import Question, question_of, text_of
from fedpeft.answers.scores import AnswerScore, checked
from fedpeft.data.examples import ExampleSet
from fedpeft.tuning.tuned import TunedModel

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Exam:
    """What a language model is asked, and how its answers are scored.

    Attributes:
      tokenizer: of the model.
      questions: client ("" where there are none) and question, in order.
      scores: name -> score.
      items: multiple choice.
      decoding: how answers are generated.
      stops: the tokens that end an answer.
    """

    tokenizer: PreTrainedTokenizerBase
    questions: Sequence[tuple[str, Question]] = ()
    scores: Mapping[str, AnswerScore] = field(default_factory=dict)
    items: Sequence[Item] = ()
    decoding: Decoding = field(default_factory=Decoding)
    stops: frozenset[int] = frozenset()

    def asked(self, question: Question) -> str:
        """Return a prompt as text, special tokens included."""
        return str(self.tokenizer.decode(list(question.prompt)))

    def reference(self, question: Question) -> str:
        """Return the expected answer as text."""
        return text_of(self.tokenizer, question.reference)


@dataclass(frozen=True)
class Marked:
    """An answer with its scores by name."""

    text: str
    scores: Mapping[str, float]


@dataclass(frozen=True)
class Report:
    """The answers of one model.

    Attributes:
      answers: one for each question, in order.
      choices: multiple choice; None without items.
    """

    answers: Sequence[Marked]
    choices: ChoiceFigures | None

    def means(self, rows: Sequence[int] | None = None) -> dict[str, float]:
        """Return the mean of each score over some answers, or over all; {} without answers."""
        chosen = self.answers if rows is None else [self.answers[row] for row in rows]
        names = chosen[0].scores if chosen else ()
        return {name: statistics.fmean(each.scores[name] for each in chosen) for name in names}


def sit(tuned: TunedModel, exam: Exam) -> Report:
    """Let a language model, with its live delta, answer everything.

    Raises:
      ConfigError: if a score is no number.
    """
    answers = []
    for _, question in exam.questions:
        tokens = list(generate(tuned, question.prompt, exam.stops, exam.decoding))
        text, reference = text_of(exam.tokenizer, tokens), exam.reference(question)
        marks = {name: checked(name, s, text, reference) for name, s in exam.scores.items()}
        answers.append(Marked(text, marks))
    choices = score_items(tuned, exam.tokenizer, exam.items) if exam.items else None
    return Report(answers, choices)


def choose_questions(
    examples: ExampleSet, groups: Mapping[str, Sequence[int]], count: int
) -> list[tuple[str, Question]]:
    """Choose questions of a test set, spread evenly over groups and over the rows of each.

    Args:
      examples: the test set.
      groups: name -> rows.
      count: how many; fewer come back where there are not so many.

    Returns:
      (group, question), group by group.
    """
    found = []
    for place, (name, rows) in enumerate(groups.items()):
        share = count // len(groups) + (place < count % len(groups))
        found += [(name, question) for question in _spread(examples, rows, share)]
    return found


def _spread(examples: ExampleSet, rows: Sequence[int], count: int) -> Iterator[Question]:
    """Yield the first question of each of `count` equal stretches of rows."""
    count = min(count, len(rows))
    ends = [len(rows) * (place + 1) // count for place in range(count)]
    start = 0
    for end in ends:
        for row in rows[start:end]:
            question = question_of(examples, int(row))
            if question is not None:
                yield question
                break
        start = end
