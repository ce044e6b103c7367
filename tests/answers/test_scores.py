import builtins

import pytest

from fedpeft.answers.scores import AnswerScore, checked, exact_match, rouge_l
from fedpeft.core.errors import ConfigError


@pytest.mark.parametrize(
    ("options", "answer", "reference", "score"),
    [
        ({}, "Yes.", " yes ", 1.0),
        ({}, "a  b\n c", "a b c", 1.0),
        ({}, "yes", "no", 0.0),
        ({"ignore_case": False}, "Yes", "yes", 0.0),
        ({"ignore_punctuation": False}, "yes.", "yes", 0.0),
        ({"ignore_punctuation": False}, "yes.", "Yes.", 1.0),
    ],
)
def test_exact_match(options, answer, reference, score):
    assert exact_match(**options).score(answer, reference) == score


@pytest.mark.parametrize(
    ("answer", "reference", "score"),
    [
        ("the cat sat", "the cat sat", 1.0),
        ("the cat sat on the mat", "the dog sat", 2 * (2 / 6) * (2 / 3) / (2 / 6 + 2 / 3)),
        ("one two", "three four", 0.0),
        ("", "three", 0.0),
        ("Naïve, café!", "naïve café", 1.0),
    ],
)
def test_rouge_l_is_the_f_measure_of_the_longest_common_words(answer, reference, score):
    pytest.importorskip("torchmetrics")
    assert rouge_l().score(answer, reference) == pytest.approx(score, abs=1e-6)


def test_a_missing_library_is_named(monkeypatch):
    def without(name, *args, **kwargs):
        if name.startswith("torchmetrics"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    real = builtins.__import__
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(
        ConfigError, match=r"torchmetrics is not installed; install `fedpeft\[llm\]`"
    ):
        rouge_l()


@pytest.mark.parametrize(
    ("score", "match"),
    [
        (lambda a, r: float("nan"), "mine gives nan for the answer 'yes'"),
        (lambda a, r: 1 / 0, "mine fails on the answer 'yes': ZeroDivisionError"),
        (lambda a, r: "many", "mine fails .*could not convert"),
    ],
)
def test_a_score_that_is_no_number_is_refused(score, match):
    with pytest.raises(ConfigError, match=match):
        checked("mine", AnswerScore(score), "yes", "no")
    assert checked("mine", AnswerScore(lambda a, r: 3), "yes", "no") == 3.0
