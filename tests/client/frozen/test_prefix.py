from __future__ import annotations

import numpy as np
import pytest
import torch

from fedpeft.client.frozen.feature_file import FeatureFile, bytes_of, memory_file
from fedpeft.client.frozen.prefix import (
    CHUNK,
    Kept,
    PrefixExamples,
    PrefixViews,
    lay_out,
    prefix_of,
    token_counts,
)
from fedpeft.client.settings import LocalSettings
from fedpeft.data.tensors import TextExamples, flat_tokens
from fedpeft.models.bypass import PREFIX
from fedpeft.models.source import ModelRequest, load_model
from fedpeft.tuning.methods import TuningRequest, tune
from fedpeft.tuning.prefix import Split, features, find_split, rest_batch


def texts(num: int = 20, *, length: int | None = None) -> TextExamples:
    draw = np.random.default_rng(0)
    rows = [draw.integers(3, 100, length or 2 + 3 * (i % 5)).tolist() for i in range(num)]
    labels = torch.arange(num) % 3
    return TextExamples(*flat_tokens(rows), labels, pad_id=0)


def cut(method="lora", blocks=(1, 1)):
    loaded = load_model(ModelRequest("preset:tiny-bert", num_labels=3))
    tuned = tune(loaded, TuningRequest(method, {}, blocks))
    split = find_split(tuned, texts().batch([0, 1], seed=None))
    assert isinstance(split, Split)
    return tuned, split


def examples(inner, *, method="lora", blocks=(1, 1), budget=10**7, groups=None, calls=None):
    tuned, split = cut(method, blocks)
    prefix = prefix_of(tuned, split, LocalSettings())

    def counted(batch):
        (calls if calls is not None else []).append(len(batch["labels"]))
        return prefix(batch)

    groups = groups or [np.arange(len(inner))]
    layout = lay_out(token_counts(inner, split), groups, width=split.width, budget=budget)
    table = FeatureFile(memory_file(layout.bytes(split.width)), layout.starts, split.width)
    return PrefixExamples(inner, split, counted, Kept(layout, table))


@pytest.mark.parametrize(("method", "blocks"), [("head", None), ("lora", (1, 1))])
def test_stored_batches_equal_computed_ones(method, blocks):
    inner, rows = texts(), [7, 3, 3, 11, 0]
    tuned, split = cut(method, blocks)
    one = inner.batch(rows, seed=None)
    expected = rest_batch(split, one, features(tuned, split, one))
    found = examples(inner, method=method, blocks=blocks).batch(rows, seed=1)
    assert found.keys() == expected.keys()
    real = one["attention_mask"].bool() if split.text else ...
    torch.testing.assert_close(found[PREFIX][real], expected[PREFIX][real], rtol=1e-4, atol=1e-5)
    assert all(torch.equal(found[k], expected[k]) for k in found.keys() - {PREFIX})
    if split.text:
        assert not found[PREFIX][~real].any()


def test_no_padding_is_stored():
    inner = texts()
    table = examples(inner)
    stored = int(inner.offsets[-1])
    assert table._layout.bytes(16) == bytes_of(20, stored, 16)


def test_each_chunk_is_computed_once():
    calls: list[int] = []
    groups = [np.arange(0, 100), np.arange(100, 130)]
    table = examples(texts(130), groups=groups, calls=calls)
    for _ in range(3):
        table.batch([5, 99, 7], seed=None)
        table.batch([101], seed=None)
    assert calls == [CHUNK, 100 - CHUNK, 30]


def test_features_do_not_depend_on_who_asks_first():
    inner = texts(130)
    one, two = examples(inner), examples(inner)
    one.batch([129], seed=None)
    one.batch([0], seed=None)
    for row in range(0, 130, 7):
        assert torch.equal(
            one.batch([row], seed=None)[PREFIX],
            two.batch([row, 3], seed=None)[PREFIX][:1, : len_of(inner, row)],
        )


def len_of(inner, row):
    return int(inner.offsets[row + 1] - inner.offsets[row])


def test_the_budget_is_kept_and_what_does_not_fit_is_computed():
    inner = texts(30, length=10)
    groups = [np.arange(2, 10), np.arange(0, 2), np.arange(10, 28), np.arange(28, 30)]
    budget = bytes_of(14, 140, 16)
    calls: list[int] = []
    table = examples(inner, groups=groups, budget=budget, calls=calls)
    assert table._layout.bytes(16) <= budget
    assert table._layout.rows.tolist() == [*range(2, 10), 0, 1]
    full = examples(inner)
    for _ in range(2):
        found, expected = (t.batch([12, 1, 29], seed=None) for t in (table, full))
        torch.testing.assert_close(found[PREFIX], expected[PREFIX], rtol=1e-4, atol=1e-5)
    assert calls == [3, 3]
    table.batch([1, 9], seed=None)
    assert calls == [3, 3, 8, 2]


def test_nothing_fits_into_nothing():
    table = examples(texts(4), budget=1)
    assert len(table._layout.rows) == 0 and len(table) == 4
    assert table.batch([1], seed=None)[PREFIX].shape[0] == 1


def test_a_damaged_record_is_computed_again():
    calls: list[int] = []
    table = examples(texts(6), calls=calls)
    before = table.batch([2], seed=None)[PREFIX]
    table._table._values[...] = 0.0
    table._table._checked[...] = False
    assert torch.equal(table.batch([2], seed=None)[PREFIX], before)
    assert calls == [6, 6]


class Noisy:
    """Examples that are augmented with random numbers from the seed."""

    def __init__(self, inner):
        self.inner = inner

    def __len__(self):
        return len(self.inner)

    def batch(self, indices, *, seed):
        found = self.inner.batch(indices, seed=None)
        shift = 0 if seed is None else 1 + seed % 7
        return {**found, "input_ids": (found["input_ids"] + shift) % 100}


def test_epochs_go_round_the_views():
    tuned, split = cut("head", None)
    inner = Noisy(texts())
    prefix = prefix_of(tuned, split, LocalSettings())
    layout = lay_out(token_counts(inner, split), [np.arange(20)], width=16, budget=10**6)

    def view(seed):
        table = FeatureFile(memory_file(layout.bytes(16)), layout.starts, 16)
        return PrefixExamples(inner, split, prefix, Kept(layout, table), seed)

    views = PrefixViews([view(1), view(2), view(3)])
    found = [views.in_epoch(e).batch([4, 5], seed=99 + e)[PREFIX] for e in range(6)]
    assert all(torch.equal(found[e], found[e + 3]) for e in range(3))
    assert not torch.equal(found[0], found[1]) and not torch.equal(found[1], found[2])
    fresh = features(tuned, split, inner.batch([4, 5], seed=2))
    torch.testing.assert_close(found[1], fresh, rtol=1e-4, atol=1e-5)
    assert len(views) == 20


class PaddedInFront:
    def __len__(self):
        return 2

    def batch(self, indices, *, seed):
        mask = torch.tensor([[0, 1, 1], [1, 1, 1]])[list(indices)]
        return {"input_ids": mask, "attention_mask": mask, "labels": mask[:, 0]}


def test_texts_padded_in_front_have_no_features_of_their_own():
    _, split = cut()
    assert token_counts(PaddedInFront(), split) is None
    assert token_counts(texts(5), split).tolist() == [2, 5, 8, 11, 14]
