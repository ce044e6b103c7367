"""The handshake: what must agree, and the reasons when it does not."""

from __future__ import annotations

import dataclasses
import shutil

import pytest
import support
import torch

from fedpeft.core.errors import DeltaMismatchError
from fedpeft.models.loaded import ImageInput, TextInput
from fedpeft.rounds import handshake
from fedpeft.rounds.handshake import compare, label_fact, model_facts, read_facts, write_facts

FACTS = {
    "experiment": "1" * 64, "method": "bias", "backbone": "2" * 64, "inputs": "3" * 64,
    "delta": "4" * 64, "labels": label_fact(["cat", "dog"]), "version.fedpeft": "0.1.0",
    "version.torch": "2.13.0+cpu", "version.transformers": "5.23.0", "version.peft": "0.21.2",
}  # fmt: skip


def test_equal_facts_fit():
    assert compare(FACTS, dict(FACTS)) == []
    assert compare(FACTS, FACTS | {"version.torch": "2.13.4", "cores": "64"}) == []


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        (
            "experiment",
            "9" * 64,
            "experiment: the server has 111111111111…, the site 999999999999…",
        ),
        ("method", "lora", "tuning method: the server has bias, the site lora"),
        ("backbone", "9" * 64, "the frozen weights differ"),
        ("inputs", "9" * 64, "the tokenizer or the image processor differs"),
        ("delta", "", "delta: the server has 444444444444…, the site nothing"),
        ("labels", label_fact(["dog", "cat"]), "list the classes, in the server's order"),
        ("version.fedpeft", "0.2.0", "the server has fedpeft 0.1.0, the site 0.2.0"),
        ("version.torch", "2.14.0", "the server has torch 2.13.0+cpu, the site 2.14.0"),
        ("version.peft", "", "peft 0.21.2, the site none"),
    ],
)
def test_each_difference_is_a_reason(key, value, words):
    (reason,) = compare(FACTS, FACTS | {key: value})
    assert words in reason


def test_labels_that_are_bare_numbers_cannot_differ():
    assert compare(FACTS, FACTS | {"labels": label_fact(None)}) == []


def test_the_backbones_fingerprint_is_of_frozen_weights_only():
    tuned = support.tuned()
    before = model_facts(tuned)
    with torch.no_grad():
        next(iter(tuned.parameters.values())).add_(1.0)
    assert model_facts(tuned) == before
    trained = {k: v for k, v in tuned.parameters.items() if k.startswith("head")}
    frozen = dataclasses.replace(tuned, parameters=trained)
    found = model_facts(frozen)["backbone"]
    with torch.no_grad():
        tuned.model.low.weight[0, 0] += 1e-3
    assert model_facts(frozen)["backbone"] != found  # the negative control


def test_preprocessing_is_told_by_what_files_hold_not_by_where_they_lie(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "tokenizer.json").write_text("{}")
    found = [inputs_of(tmp_path / name) for name in ("a", "b")]
    (tmp_path / "b" / "tokenizer.json").write_text("{ }")
    assert found[0] == found[1] != inputs_of(tmp_path / "b")
    shutil.rmtree(tmp_path / "b")


def inputs_of(folder):
    model = support.tuned()
    loaded = dataclasses.replace(model.loaded, inputs=TextInput(str(folder), 64), folder=folder)
    return model_facts(dataclasses.replace(model, loaded=loaded))["inputs"]


def test_another_mean_is_another_preprocessing():
    model = support.tuned()

    def digest(mean: float) -> str:
        inputs = ImageInput(8, 8, 1, (mean,), (1.0,))
        loaded = dataclasses.replace(model.loaded, inputs=inputs)
        return model_facts(dataclasses.replace(model, loaded=loaded))["inputs"]

    assert digest(0.5) == digest(0.5) != digest(0.4)


def test_facts_travel():
    assert read_facts(write_facts(FACTS)) == FACTS
    for blob in (b"", b"[]", b'{"a": 1}', b"\xff", b'{"a": "' + b"x" * 70_000 + b'"}'):
        with pytest.raises(DeltaMismatchError, match="bytes that are no facts"):
            read_facts(blob)


@pytest.mark.parametrize(("said", "words"), [
    ("1000001", "announces 1000001, at most 1000000 are allowed"),
    ("1e9", "allowed is a whole number"), ("-5", "allowed is a whole number"), ("0", "above 0"),
    ("9" * 40, "allowed is a whole number"), ("\u0661", "allowed is a whole number"),
])  # fmt: skip
def test_a_number_of_examples_that_cannot_be_is_refused(said, words):
    (reason,) = handshake.refuse_announced({"site": "a", "examples": said}, {}, 1_000_000)
    assert words in reason


def test_the_operators_own_figure_for_a_site_counts():
    most = {"a": 10, "b": 5_000_000}
    assert handshake.refuse_announced({"site": "a", "examples": "11"}, most, 1000)
    assert not handshake.refuse_announced({"site": "b", "examples": "4000000"}, most, 1000)
    assert not handshake.refuse_announced({"site": "c", "examples": "not told"}, most, 1000)
    assert handshake.announced({"examples": "492"}) == 492
    assert handshake.announced({"examples": "not told"}) is None
