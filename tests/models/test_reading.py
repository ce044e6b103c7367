"""The guard around a library that reads foreign files, and the limits of what it may build."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import nn

from fedpeft.core.errors import DataError, ModelError
from fedpeft.models import limits
from fedpeft.models.reading import reading


class PanicException(BaseException):
    """As the bindings of Rust name theirs."""


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (KeyError("x"), "here: cannot be read (KeyError: 'x'); do that"),
        (RecursionError(), "here: cannot be read (RecursionError); do that"),
        (ValueError("two\nlines"), "here: cannot be read (two lines); do that"),
        (OverflowError("too far"), "here: cannot be read (OverflowError: too far); do that"),
        (PermissionError(13, "Permission denied", "f"),
         "here: cannot be read (Permission denied: f)"),
        (ImportError("needs sentencepiece"), "here: cannot be read (needs sentencepiece); do that"),
        (PanicException("in Rust"), "here: cannot be read (PanicException: in Rust); do that"),
        (MemoryError(), "here: cannot be read: this machine has not enough memory"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 4 bytes"),
         "here: cannot be read: this machine has not enough memory"),
    ],
    ids=lambda each: type(each).__name__,
)  # fmt: skip
def test_whatever_a_library_raises_becomes_one_error(error, words):
    with pytest.raises(ModelError) as caught, reading("here", "cannot be read", advice="do that"):
        raise error
    assert str(caught.value).startswith(words)
    assert caught.value.__cause__ is error


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3), DataError("clear already")])
def test_what_is_not_the_files_fault_passes(error):
    with pytest.raises(type(error)) as caught, reading("here", "cannot be read"):
        raise error
    assert caught.value is error


def test_the_broken_one_of_several_files_is_named(tmp_path):
    (tmp_path / "a.json").write_text("{}")
    (tmp_path / "b.json").write_text("{")
    files = [tmp_path / name for name in ("none.json", "a.json", "b.json")]
    with pytest.raises(ModelError, match=r"b\.json: not a JSON object"):
        with reading("here", "cannot be read", files=files):
            raise KeyError
    with pytest.raises(ModelError, match=r"here: cannot be read from a\.json \(KeyError\)"):
        with reading("here", "cannot be read", files=files[:2]):
            raise KeyError


def stacked(count):
    return nn.ModuleList([nn.Identity() for _ in range(count)])


def test_modules_are_counted_in_this_thread_and_in_the_block_alone(monkeypatch):
    monkeypatch.setattr(limits, "MOST_MODULES", 5)
    with limits.limited("here"):
        other = threading.Thread(target=stacked, args=(6,))
        other.start()
        other.join()
        stacked(5)
    stacked(6)
    with pytest.raises(ModelError, match="here: describes a model of more than 5 modules"):
        with limits.limited("here"):
            stacked(6)


def test_elements_are_counted_where_they_take_no_memory():
    with limits.limited("here", stored=[1000]):
        nn.Linear(10, 10)
        with torch.device("meta"):
            nn.Linear(2**14, 2**13)
            with pytest.raises(ModelError, match=r"more than its weights allow \(1 tensors, 1,000"):
                nn.Linear(2**14, 2**14)


@pytest.mark.parametrize(
    ("found", "key"),
    [
        ({"depths": [2, 10**6]}, "depths"),
        ({"attention_types": [[["global"], 10**9]]}, "attention_types"),
        ({"text_config": {"num_hidden_layers": 10**9}}, "text_config.num_hidden_layers"),
        ({"max_position_embeddings": 10**9}, "max_position_embeddings"),
        ({"depths": [0, 2]}, "depths"),
    ],
)
def test_a_count_that_no_model_has_is_named(tmp_path, found, key):
    known = {"depths", "attention_types", "max_position_embeddings"}
    with pytest.raises(ModelError, match=rf"config\.json: {key}: found [\d,]+; allowed is at"):
        limits.check_counts(found, tmp_path / "config.json", known)


@pytest.mark.parametrize(
    "found",
    [
        {"rope_theta": 10**10, "num_hidden_layers": 126, "max_position_embeddings": 10_485_760},
        {"trained_tokens": 15 * 10**12},  # no key of the library's config
        {"task_specific_params": {"x": {"max_length": 10**9}}},
        {"vocab_size": 10**8, "hidden_size": 2**20},  # counted as they are built
        {"use_cache": True, "layer_norm_eps": 1e-6, "pad_token_id": 2**31},
    ],
)
def test_what_models_have_passes(tmp_path, found):
    """The negative control."""
    limits.check_counts(found, tmp_path / "config.json", found.keys() - {"trained_tokens"})
