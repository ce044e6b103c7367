"""The law of the frozen prefix: a run with it equals the run without it."""

from __future__ import annotations

import dataclasses
import gc
import multiprocessing
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

import fedpeft
from fedpeft.build import prefix
from fedpeft.build.prefix import cache_folder, content_digest, prefix_digest
from fedpeft.client.settings import LocalSettings
from fedpeft.core.errors import ConfigError
from fedpeft.data.examples import Federated
from fedpeft.data.images import Canvas, LazyPixels, StoredPixels
from fedpeft.data.tensors import ImageExamples, TextExamples, flat_tokens
from fedpeft.data.transforms import View
from fedpeft.experiment.read import apply_overrides, validate
from fedpeft.launch import start
from fedpeft.models.source import ModelRequest, load_model
from fedpeft.plan.plan import make_plan
from fedpeft.tuning.methods import TuningRequest, tune
from fedpeft.tuning.prefix import Split, find_split
from fedpeft.tuning.tuned import read_delta

SETTINGS = {
    "federation.rounds": 2,
    "federation.clients_per_round": 3,
    "client.epochs": 2,
    "client.batch_size": 8,
    "client.lr": 0.1,
    "engine.workers": 1,
}
DIGITS = {
    "model": {"name": "preset:tiny-vit"},
    "tuning": {"method": "head"},
    "data": {"budget": 200, "partition": {"clients": 6, "alpha": 1.0}},
    "federation": {"rounds": 2, "clients_per_round": 3},
    "client": {"epochs": 2, "lr": 0.1, "batch_size": 16},
    "engine": {"workers": 1},
}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDPEFT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "prefix"


def experiment(**settings):
    return validate(apply_overrides(DIGITS, settings.items()), "test")


def run(tmp_path, name, **settings):
    return start.run(experiment(**settings), tmp_path / name)


def text_data(*, classes: bool = True) -> Federated:
    """Six clients of ten texts; the later a client, the longer its texts."""
    draw = np.random.default_rng(0)
    rows = [draw.integers(3, 100, 3 + i % 6 + i // 20).tolist() for i in range(90)]
    labels = torch.tensor([row[0] % 3 for row in rows])
    train, test = (
        TextExamples(*flat_tokens(rows[part]), labels[part] if classes else None, 0)
        for part in (slice(0, 60), slice(60, 90))
    )
    clients = {f"client-{i}": np.arange(10 * i, 10 * i + 10) for i in range(6)}
    known = labels[:60].numpy() if classes else None
    return Federated(train, test, clients, 3 if classes else None, None, known, "texts", {})


def text_run(method="head", blocks=None, *, classes=True, private=None, pooling=None, **settings):
    name, labels = ("preset:tiny-bert", 3) if classes else ("preset:tiny-llama", None)
    seed = settings.get("seed", 1)
    request = ModelRequest(name, num_labels=labels, seed=seed, pooling=pooling)
    tuned = tune(load_model(request), TuningRequest(method, {}, blocks))
    table = {**SETTINGS, **{key.replace("__", "."): value for key, value in settings.items()}}
    result = fedpeft.simulate(tuned, text_data(classes=classes), table, privacy=private)
    return read_delta(result.tuned), result.records


def assert_same(one, two):
    """The same delta and metrics, up to the last bits of padded batches."""
    torch.testing.assert_close(one[0], two[0], rtol=1e-3, atol=1e-5)
    for a, b in zip(one[1], two[1], strict=True):
        assert a["metrics"] == pytest.approx(b["metrics"], rel=1e-4)


@pytest.mark.parametrize(
    ("method", "blocks"),
    [
        ("bias", (1, 1)),
        ("adapter", (1, 1)),
        pytest.param("head", None, marks=pytest.mark.slow),
        pytest.param("lora", (1, 1), marks=pytest.mark.slow),
    ],
)
def test_texts_train_as_without(method, blocks):
    without = text_run(method, blocks, client__prefix_cache="off")
    assert_same(text_run(method, blocks), without)


@pytest.mark.parametrize(
    ("method", "blocks", "pooling"),
    [("head", None, "mean"), ("head", None, "cls"), ("lora", (1, 1), "mean")],
)
def test_pooled_texts_train_as_without(method, blocks, pooling):
    without = text_run(method, blocks, pooling=pooling, client__prefix_cache="off")
    assert_same(text_run(method, blocks, pooling=pooling), without)
    own = text_run(method, blocks, client__prefix_cache="off")
    assert not torch.allclose(own[0], without[0], atol=1e-4)


def test_features_on_disk_are_of_one_pooling(cache):
    for pooling in ("mean", "cls", "mean"):
        on_disk = text_run("head", pooling=pooling, client__prefix_cache="disk")
        assert_same(on_disk, text_run("head", pooling=pooling, client__prefix_cache="off"))
    assert len(list(cache.iterdir())) >= 4, "of training and test, for each pooling"


def test_language_models_train_as_without():
    without = text_run("head", classes=False, client__prefix_cache="off")
    assert_same(text_run("head", classes=False), without)


@pytest.mark.parametrize(
    ("method", "blocks"),
    [
        ("head", None),
        ("lora", [1, 1]),
        pytest.param("bias", [1, 1], marks=pytest.mark.slow),
        pytest.param("prompt", [1, 1], marks=pytest.mark.slow),
    ],
)
def test_images_train_as_without(tmp_path, method, blocks):
    """Bit by bit: what an image gives does not depend on its batch."""
    settings = {"tuning.method": method, "tuning.blocks": blocks}
    on, off = (
        run(tmp_path, mode, **settings, **{"client.prefix_cache": mode}) for mode in ("auto", "off")
    )
    assert on["prefix_cache_bytes"] > 0 and off["prefix_cache_bytes"] == 0
    assert on["delta_digest"] == off["delta_digest"]
    assert on["accuracy"] == off["accuracy"] and on["loss"] == pytest.approx(off["loss"])


def test_clips_train_as_without(tmp_path):
    settings = {"model.name": "preset:tiny-videomae", "data.source": "motion", "data.budget": 24}
    on, off = (
        run(tmp_path, mode, **settings, **{"client.prefix_cache": mode}) for mode in ("auto", "off")
    )
    assert on["prefix_cache_bytes"] > 0
    assert on["loss"] == pytest.approx(off["loss"], rel=1e-5)


@pytest.mark.parametrize("mode", ["memory", "disk"])
def test_any_number_of_workers_gives_the_same_bits(mode):
    one, two = (
        text_run("lora", (1, 1), client__prefix_cache=mode, engine__workers=workers)
        for workers in (1, 2)
    )
    assert torch.equal(one[0], two[0])
    assert [r["metrics"] for r in one[1]] == [r["metrics"] for r in two[1]]


def test_memory_and_disk_give_the_same_bits_also_when_they_are_found_again(cache):
    memory, disk, again = (
        text_run("lora", (1, 1), client__prefix_cache=mode)[0]
        for mode in ("memory", "disk", "disk")
    )
    assert len(list(cache.iterdir())) == 2
    assert torch.equal(memory, disk) and torch.equal(disk, again)


def test_damaged_files_are_computed_again(cache):
    right = text_run("head", client__prefix_cache="disk")[0]
    for path in cache.iterdir():
        content = path.read_bytes()
        path.write_bytes(content[:-64] + b"\0" * 64)
    assert torch.equal(text_run("head", client__prefix_cache="disk")[0], right)


def test_wrong_features_would_give_another_result(cache, monkeypatch):
    """The negative control of the laws: a key that forgets the backbone mixes two of them up."""
    monkeypatch.setattr(prefix, "prefix_digest", lambda tuned, split: "forgotten")
    text_run("head", client__prefix_cache="disk")
    mixed = text_run("head", seed=2, client__prefix_cache="disk")
    assert len(list(cache.iterdir())) == 2  # both runs took the same two files
    right = text_run("head", seed=2, client__prefix_cache="off")
    with pytest.raises(AssertionError):
        assert_same(mixed, right)


def test_workers_compute_each_chunk_once_between_them(monkeypatch):
    calls, real = multiprocessing.get_context("fork").Value("i", 0), prefix.prefix_of

    def counting(*args):
        def run(batch):
            with calls.get_lock():
                calls.value += 1
            return real(*args)(batch)

        return run

    monkeypatch.setattr(prefix, "prefix_of", counting)
    settings = {"federation__rounds": 3, "federation__clients_per_round": 6}
    text_run("lora", (1, 1), engine__workers=2, **settings)
    assert calls.value == 6 + 1  # six clients of ten texts, and the test set


def test_resume_gives_the_same_bits(tmp_path):
    whole = run(tmp_path, "whole", **{"federation.rounds": 3})
    run(tmp_path, "part", **{"federation.rounds": 1})
    rest = start.run(experiment(**{"federation.rounds": 3}), tmp_path / "part", resume=True)
    assert rest["delta_digest"] == whole["delta_digest"]


def test_private_gradients_of_single_examples_go_through_the_rest():
    private = {"mode": "example", "noise_multiplier": 0.5, "reproducible_noise": True}
    one = {"client__epochs": 1, "federation__rounds": 1, "federation__clients_per_round": 2}
    on = text_run("lora", (1, 1), private=private, **one)
    off = text_run("lora", (1, 1), private=private, **one, client__prefix_cache="off")
    torch.testing.assert_close(on[0], off[0], rtol=1e-3, atol=1e-4)
    other = text_run("lora", (1, 1), private={**private, "noise_multiplier": 0.6}, **one)
    assert not torch.allclose(on[0], other[0], rtol=1e-3, atol=1e-4)


def test_what_does_not_fit_is_computed_every_time(tmp_path, monkeypatch):
    monkeypatch.setattr(prefix, "_MIB", 2**17)  # 131 kB: the test set takes 116, all 186
    settings = {"tuning.method": "bias", "tuning.blocks": [1, 1], "client.prefix_cache": "memory"}
    found = run(tmp_path, "part", **settings, **{"client.prefix_memory": 1})
    assert 0 < found["prefix_cache_bytes"] <= 2**17 and " of 559 examples" in found["prefix"]
    monkeypatch.setattr(prefix, "_MIB", 2**15)  # not even the test set
    less = run(tmp_path, "less", **settings, **{"client.prefix_memory": 1})
    assert 0 < less["prefix_cache_bytes"] <= 2**15
    assert less["delta_digest"] == found["delta_digest"]
    full = run(tmp_path, "full", **{**settings, "client.prefix_memory": 16})
    assert full["prefix_cache_bytes"] > 0 and full["delta_digest"] == found["delta_digest"]


def test_auto_goes_to_the_disk_where_memory_is_short(tmp_path, cache, monkeypatch):
    monkeypatch.setattr(prefix, "_MIB", 2**17)
    settings = {"tuning.method": "bias", "tuning.blocks": [1, 1], "client.prefix_memory": 1}
    assert str(cache_folder()) in run(tmp_path, "disk", **settings)["prefix"]
    assert len(list(cache.iterdir())) == 2


def test_augmented_examples_switch_it_off_or_have_views(tmp_path):
    settings = {"data.transforms.flip": True, "client.epochs": 4}
    off = run(tmp_path, "off", **settings)
    assert off["prefix_cache_bytes"] == 0 and "augmented" in off["prefix"]
    two, same = (
        run(tmp_path, name, **settings, **{"client.prefix_views": 2}) for name in ("two", "same")
    )
    assert "2 views" in two["prefix"] and two["delta_digest"] == same["delta_digest"]
    one = run(tmp_path, "one", **settings, **{"client.prefix_views": 1})
    assert len({off["delta_digest"], two["delta_digest"], one["delta_digest"]}) == 3
    assert two["prefix_cache_bytes"] > one["prefix_cache_bytes"]


@pytest.mark.parametrize(
    ("method", "blocks"),
    [
        ("lora", [1, 1]),
        ("full", None),
        pytest.param("head", None, marks=pytest.mark.slow),
        pytest.param("bias", None, marks=pytest.mark.slow),
    ],
)
def test_plan_says_what_a_run_keeps(tmp_path, method, blocks):
    settings = {"tuning.method": method, "tuning.blocks": blocks, "client.epochs": 1}
    plan = make_plan(experiment(**settings)).as_json()
    summary = run(tmp_path, "run", **settings)
    for key in ("prefix", "prefix_cache_bytes"):
        assert plan[key] == summary[key]


def test_plan_without_data_says_how_much_an_example_takes():
    settings = {"data.source": "nobody/nothing", "model.num_labels": 10, "data.budget": None}
    plan = make_plan(experiment(**settings)).as_json()
    assert plan["prefix_cache_bytes"] is None and "at most 64 B each" in str(plan["prefix"])


def test_the_key_names_all_that_features_are_computed_from(cache, monkeypatch):
    keys, original = [], prefix._key
    monkeypatch.setattr(prefix, "_key", lambda parts: keys.append(parts) or original(parts))
    text_run("head", client__prefix_cache="disk")
    named = {"format", "prefix", "device", "precision", "cpu", "torch", "examples", "view", "order"}
    assert len(keys) == 2 and all(named <= parts.keys() for parts in keys)
    assert (
        len({parts["examples"] for parts in keys}) == len({parts["order"] for parts in keys}) == 2
    )


def test_the_key_knows_the_transforms_and_the_backbone():
    pixels = torch.zeros(4, 8, 8, 1, dtype=torch.uint8)
    view = View(8, 8, 1 / 255, (0.5,), (0.5,))
    table = ImageExamples(StoredPixels(pixels, 255), torch.zeros(4, dtype=torch.int64), view)
    other_view = dataclasses.replace(table, view=dataclasses.replace(view, mean=(0.4,)))
    other_pixels = dataclasses.replace(table, pixels=StoredPixels(pixels + 1, 255))
    digests = [content_digest(t) for t in (table, other_view, other_pixels)]
    assert None not in digests and len(set(digests)) == 3
    assert content_digest(dataclasses.replace(table)) == digests[0]
    lazy = LazyPixels(["a.png"] * 4, Canvas(8, 8, 1), 255)
    assert content_digest(object()) is None
    assert content_digest(dataclasses.replace(table, pixels=lazy)) is None


def test_the_key_knows_what_lies_before_the_cut_and_nothing_else():
    def digest(change=None, **request):
        tuned = tune(
            load_model(ModelRequest("preset:tiny-vit", num_labels=10)),
            TuningRequest(**{"method": "lora", "blocks": (1, 1), **request}),
        )
        if change:
            with torch.no_grad():
                tuned.model.get_parameter(change).add_(0.5)
        batch = {
            "pixel_values": torch.zeros(2, 1, 8, 8),
            "labels": torch.zeros(2, dtype=torch.int64),
        }
        split = find_split(tuned, batch)
        assert isinstance(split, Split)
        return prefix_digest(tuned, split)

    plain = digest()
    assert digest(method="adapter") == plain == digest("vit.layers.1.mlp.fc1.weight")
    assert digest("vit.layers.0.mlp.fc1.weight") != plain
    assert digest(method="head", blocks=None) != plain


def test_views_without_a_cache_are_a_problem():
    with pytest.raises(ConfigError, match=r"client.prefix_views: found 2 with client.prefix_cache"):
        experiment(**{"client.prefix_views": 2, "client.prefix_cache": "off"})


def test_workers_that_are_not_forked_go_without(monkeypatch):
    monkeypatch.setattr(prefix, "_FORKS", False)
    alone, two = (make_plan(experiment(**{"engine.workers": n})).as_json() for n in (1, 2))
    assert alone["prefix_cache_bytes"] and not two["prefix_cache_bytes"]
    assert "on Linux only" in str(two["prefix"])


def test_tables_go_with_their_run():
    if not sys.platform.startswith("linux"):
        pytest.skip("reads /proc")

    def open_tables():
        gc.collect()
        found = subprocess.run(["ls", "-l", f"/proc/{os.getpid()}/fd"], capture_output=True)
        return found.stdout.count(b"fedpeft-prefix")

    before = open_tables()
    text_run("head")
    text_run("head")
    assert open_tables() == before


def test_a_batch_that_cannot_be_run_is_the_runs_trouble_not_ours():
    class Broken:
        def __len__(self):
            return 60

        def batch(self, indices, *, seed):
            raise ValueError("a broken picture")

    data = dataclasses.replace(text_data(), train=Broken())
    tuned = tune(load_model(ModelRequest("preset:tiny-bert", num_labels=3)), TuningRequest("head"))
    found = prefix.with_prefix(experiment(), tuned, data, LocalSettings())
    assert "could not be run: a broken picture" in found.note.words and found.tuned is tuned


def test_clients_that_share_a_table_share_its_features(tmp_path):
    """However many they are: a million clients keep no more than the table has."""
    crowd = {"data.partition.scheme": "drawn", "data.partition.clients": 10**6}
    on, off = (
        run(tmp_path, mode, **crowd, **{"client.prefix_cache": mode}) for mode in ("memory", "off")
    )
    assert " of 559 examples: " in on["prefix"] and on["prefix_cache_bytes"] < 100_000
    assert on["delta_digest"] == off["delta_digest"]


@pytest.mark.parametrize(("method", "blocks"), [("head", None), ("lora", (1, 1))])
def test_clients_that_share_a_pass_start_from_features_too(method, blocks):
    together = {"engine__clients_per_pass": 3}
    on = text_run(method, blocks, **together)
    assert_same(on, text_run(method, blocks, client__prefix_cache="off", **together))
    assert_same(on, text_run(method, blocks))


def test_clients_that_share_a_pass_see_the_same_views(tmp_path):
    settings = {"data.transforms.flip": True, "client.prefix_views": 2}
    one, three, other = (
        run(tmp_path, f"{k}-{views}", **settings | {"client.prefix_views": views},
            **{"engine.clients_per_pass": k})["loss"]
        for k, views in ((1, 2), (3, 2), (3, 1))
    )  # fmt: skip
    assert three == pytest.approx(one, rel=1e-6) and other != pytest.approx(one, rel=1e-6)
