"""Scores: how close a generated answer is to the reference, from 0 to 1 or in a unit of its own.

    score(answer, reference) -> number

A score is a function that a builder makes from its options; a package of your own adds builders
under the entry points `fedpeft.scores`.
"""

from __future__ import annotations

import math
import string
from collections.abc import Callable
from dataclasses import dataclass

from fedpeft.core.errors import ConfigError


@dataclass(frozen=True)
class AnswerScore:
    """A score of one answer.

    Attributes:
      score: from a generated answer and its reference to a number that is finite; more is better.

    Example:
      >>> import fedpeft
      >>> numbers = fedpeft.AnswerScore(lambda answer, reference: float(reference in answer))
      >>> numbers.score("it is 42.", "42")
      1.0
    """

    score: Callable[[str, str], float]


def exact_match(ignore_case: bool = True, ignore_punctuation: bool = True) -> AnswerScore:
    """1 where answer and reference are the same words, else 0.

    White space at the ends is never compared, and inside counts as one space.

    Args:
      ignore_case: whether `Yes` is `yes`.
      ignore_punctuation: whether `yes.` is `yes`.
    """
    drop = str.maketrans("", "", string.punctuation) if ignore_punctuation else {}

    def plain(text: str) -> str:
        words = " ".join(text.translate(drop).split())
        return words.casefold() if ignore_case else words

    return AnswerScore(lambda answer, reference: float(plain(answer) == plain(reference)))


def rouge_l(stemmer: bool = False) -> AnswerScore:
    """F-measure of the longest common subsequence of words (ROUGE-L), by the torchmetrics library.

    Args:
      stemmer: whether words are reduced to their stems (English; needs the package nltk).

    Raises:
      ConfigError: if the library is not installed.

    References:
      Lin, ROUGE: A Package for Automatic Evaluation of Summaries, 2004.
    """
    try:
        from torchmetrics.functional.text import rouge_score
    except ImportError as error:
        raise ConfigError(
            "rouge_l: the package torchmetrics is not installed; install `fedpeft[llm]`, or take "
            "exact_match"
        ) from error

    def scored(answer: str, reference: str) -> float:
        found = rouge_score(answer, reference, rouge_keys="rougeL", use_stemmer=stemmer)
        return float(found["rougeL_fmeasure"])

    return AnswerScore(scored)


def checked(name: str, found: AnswerScore, answer: str, reference: str) -> float:
    """Score an answer, and check that the score is a number.

    Raises:
      ConfigError: if it is none, or not finite, or the function fails.
    """
    try:
        number = float(found.score(answer, reference))
    except Exception as error:  # a user's own function may raise anything
        raise ConfigError(
            f"answers.scores: {name} fails on the answer {answer[:60]!r}: "
            f"{type(error).__name__}: {error}"
        ) from error
    if not math.isfinite(number):
        raise ConfigError(
            f"answers.scores: {name} gives {number} for the answer {answer[:60]!r}; a number that "
            "is finite is expected"
        )
    return number
