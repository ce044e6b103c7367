"""The examples in docstrings of public names run, and say what they print."""

from __future__ import annotations

import doctest
import importlib
import inspect

import pytest

import fedpeft
from fedpeft import testing

FUNCTIONS = {
    name: found
    for home in (fedpeft, testing)
    for name in home.__all__
    if inspect.isfunction(found := getattr(home, name))
}
FINDER = doctest.DocTestFinder(recurse=False, exclude_empty=False)


def examples_of(found: object) -> list[doctest.DocTest]:
    module = importlib.import_module(found.__module__)
    names = {**vars(module), "fedpeft": fedpeft}
    return FINDER.find(found, found.__qualname__, globs=names)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_example_of_a_public_function_runs(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tests = [test for test in examples_of(FUNCTIONS[name]) if test.examples]
    assert tests, f"{name}: its docstring has no example that runs"
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    for test in tests:
        lines: list[str] = []
        runner.run(test, out=lines.append)
        assert not runner.failures, "".join(lines)


def test_an_example_that_prints_something_else_is_seen():
    def wrong() -> None:
        """Say a number.

        >>> 1 + 1
        3
        """

    (test,) = FINDER.find(wrong, "wrong", globs={})
    assert doctest.DocTestRunner(verbose=False).run(test, out=lambda text: None).failed == 1
