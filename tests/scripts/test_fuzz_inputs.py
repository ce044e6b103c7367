"""Mutated experiment files, data and model folders: read, or refused in one clear error."""

from __future__ import annotations

import random

import pytest

import fuzz_inputs
from fedpeft.core.errors import ConfigError
from fedpeft.experiment.read import read_experiment


@pytest.mark.parametrize(("kind", "count"), [("configs", 60), ("data", 60), ("models", 40)])
def test_mutated_inputs_are_read_or_refused(kind, count):
    found = list(fuzz_inputs.fuzz(kind, count, start=10**6))
    assert [each for each in found if each[1] == "neither"] == []
    assert {outcome for _, outcome, _ in found} == {"read", "refused"}


def test_a_reader_that_breaks_is_seen(monkeypatch):
    """The negative control."""

    def broken(folder, draw):
        raise KeyError("of a library")

    monkeypatch.setitem(fuzz_inputs._CHECKS, "data", broken)
    assert [found[1] for found in fuzz_inputs.fuzz("data", 2)] == ["neither"] * 2


def test_a_number_decides_its_input():
    texts = [fuzz_inputs.mutate_text("a = 1\nb = 2\n", random.Random(7)) for _ in range(2)]
    assert texts[0] == texts[1] != b"a = 1\nb = 2\n"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            f'name = "{"a" * 300}"',
            r"name: found a text of 300 characters; allowed are 4096, and 255",
        ),
        (f"[data]\nsource = '{'b/' * 4000}'", r"data.source: found a text of 8000 characters"),
        ('[model]\nname = "a\\u0000b"', r"model.name: found 'a\\x00b'; a text without"),
        ("[model]\nname = '~nobody-here/x'", r"model.name: .* no user of this name"),
        (f"seed = {'9' * 5000}", r"not valid TOML: .*digits"),
        (f"seed = {'[' * 5000}", r"not valid TOML"),
    ],
)
def test_texts_that_no_system_can_use_are_refused(tmp_path, line, message):
    file = tmp_path / "e.toml"
    file.write_text(line)
    with pytest.raises(ConfigError, match=message):
        read_experiment(file)
