from __future__ import annotations

import pytest
from pydantic import ValidationError

from fedpeft.experiment.fields import Positive, Table
from fedpeft.experiment.schema import Problem, explain, listed


class Inner(Table):
    number: Positive


class Outer(Table):
    inner: Inner
    word: str = ""


@pytest.mark.parametrize(
    ("table", "path", "line"),
    [
        ({"inner": {"number": 0}}, ("inner", "number"),
         "inner.number: found 0; allowed is greater than or equal to 1"),
        ({"inner": {"number": 1, "numbr": 2}}, ("inner", "numbr"),
         "inner.numbr: unknown key; did you mean 'number'?"),
        ({"inner": {}}, ("inner", "number"), "inner.number: is missing and required here"),
        ({"inner": 3}, ("inner",), "inner: found 3; allowed is a table"),
        ({"inner": {"number": 1}, "word": [1] * 1000}, ("word",),
         f"word: found {str([1] * 1000)[:200]}; allowed is a valid string"),
    ],
    ids=["value", "unknown", "missing", "no table", "long"],
)  # fmt: skip
def test_a_problem_says_where_what_and_what_is_allowed(table, path, line):
    with pytest.raises(ValidationError) as caught:
        Outer.model_validate(table)
    assert explain(caught.value, Outer) == [Problem(path, line)]


def test_problems_are_counted_and_listed():
    assert listed("a.toml", ["x"]) == "a.toml: 1 problem\n  x"
    assert listed("a.toml", ["x", "y"]) == "a.toml: 2 problems\n  x\n  y"
