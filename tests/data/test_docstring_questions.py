"""Questions that are made of the docstrings of installed packages."""

from __future__ import annotations

import pytest

from fedpeft.core.errors import DataError
from fedpeft.data import docstring_questions
from fedpeft.data.docstring_questions import first_sentence, read_questions


@pytest.fixture
def two(monkeypatch):
    monkeypatch.setattr(docstring_questions, "PACKAGES", ("typer", "jinja2"))


@pytest.mark.parametrize(
    ("docstring", "sentence"),
    [
        ("Return the root of x. More of it.\n\nArgs:", "Return the root of x."),
        ("Return the\n    root.", "Return the root."),
        ("Use :func:`~numpy.sort` or ``x``.", "Use numpy.sort or x."),
        ("See :class:`a thing <a.b>` (e.g. 1.5 of them).", "See a thing (e.g. 1.5 of them)."),
        ("No end of a sentence", ""),
        ("", ""),
    ],
)
def test_an_answer_is_the_first_sentence(docstring, sentence):
    assert first_sentence(docstring) == sentence


def test_a_client_is_a_package_and_questions_are_asked_once(two):
    tables = read_questions().tables
    rows = [
        row
        for table in tables.values()
        for row in zip(*(table.columns[n] for n in ("question", "answer", "client")), strict=True)
    ]
    assert {client for *_, client in rows} == {"typer", "jinja2"}
    assert len({question for question, *_ in rows}) == len(rows)
    for question, answer, client in rows:
        assert question.startswith("In Python, what does the ") and client in question
        assert 25 <= len(answer) <= 160 and answer.endswith(".")


def test_equal_packages_give_equal_splits(two):
    first, again = read_questions(), read_questions()
    assert first.digest == again.digest
    test = len(first.tables["test"])
    assert test == pytest.approx((test + len(first.tables["train"])) / 5, abs=1)


def test_one_package_alone_is_refused(monkeypatch):
    monkeypatch.setattr(docstring_questions, "PACKAGES", ("typer", "no_such_package"))
    with pytest.raises(DataError, match="needs two or more of typer, no_such_package"):
        read_questions()
