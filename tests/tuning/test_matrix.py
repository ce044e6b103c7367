"""The table docs/reference/models.md is what happens: each method on each kind of model.

The default tier tries a few pairs; `-m slow` tries them all.
"""

from __future__ import annotations

import functools

import pytest

import model_matrix
from fedpeft.tuning import adapter
from model_matrix import METHODS, PAGE, TITLES, Outcome, in_words, outcomes_on, page_of, row_of
from model_zoo import KINDS, Kind

SAMPLE = (
    ("mpnet", ("lora",)),
    ("resnet", ("dora", "adapter")),
    ("opt", ("prompt_tuning", "ia3")),
    ("vit_msn", ("prompt",)),
)
"""A few pairs of models that have no family here, by type."""


@functools.cache
def pages() -> dict[tuple[str, str, str], str]:
    return outcomes_on(PAGE.read_text("utf-8"))


def kind_named(model_type: str) -> Kind:
    return next(kind for kind in KINDS if kind.model_type == model_type)


def compare(kind: Kind, methods: tuple[str, ...]) -> None:
    for method, outcome in row_of(kind, methods).items():
        assert not outcome.broken, f"{kind.model_type}, {method}: {outcome.broken}"
        assert pages()[TITLES[kind.task], kind.model_type, method] == in_words(outcome)


@pytest.mark.parametrize(("model_type", "methods"), SAMPLE)
def test_a_few_pairs_are_as_the_page_says(model_type, methods):
    compare(kind_named(model_type), methods)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS, ids=lambda k: f"{k.task.split('-')[0]}-{k.model_type}")
def test_every_pair_is_as_the_page_says(kind):
    compare(kind, METHODS)


def test_the_page_has_every_pair():
    expected = {(TITLES[kind.task], kind.model_type, m) for kind in KINDS for m in METHODS}
    assert set(pages()) == expected
    assert len(KINDS) >= 63


def test_a_page_is_read_as_it_was_written():
    kind = kind_named("mpnet")
    row = dict.fromkeys(METHODS, Outcome())
    row |= {
        "bias": Outcome(options="add_missing = true"),
        "prompt": Outcome("no picture; choose x"),
    }
    found = outcomes_on(page_of({kind: row}))
    assert {found[TITLES[kind.task], "mpnet", m]: 0 for m in METHODS} == {
        "yes": 0,
        "yes, add_missing = true": 0,
        "no picture; choose x": 0,
    }


def test_an_adapter_that_is_not_reached_is_noticed(monkeypatch):
    monkeypatch.setattr(adapter, "_add_bottleneck", lambda part, place, module, ins, out: out)
    found = row_of(kind_named("mpnet"), ("adapter",))["adapter"]
    assert found.broken == "no part of the delta outside the head gets a gradient"


def test_a_delta_that_is_not_loaded_is_noticed(monkeypatch):
    monkeypatch.setattr(model_matrix, "write_delta", lambda tuned, flat: None)
    found = row_of(kind_named("mpnet"), ("head",))["head"]
    assert found.broken == "the loaded delta gives other logits"


def test_an_error_of_a_library_is_no_refusal(monkeypatch):
    def fail(*_):
        raise KeyError("past_key_values")

    monkeypatch.setattr(model_matrix, "tune", fail)
    assert row_of(kind_named("mpnet"), ("lora",))["lora"].broken.startswith("KeyError")
