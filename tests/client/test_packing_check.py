"""Packed examples are refused for models and methods that would mix them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from chat_models import SIZES, chat_folder
from transformers import AutoConfig, AutoModelForCausalLM

from fedpeft.client.packing_check import check_packed
from fedpeft.core.errors import DataError
from fedpeft.data.packing import pack_clients
from fedpeft.data.tensors import TextExamples, flat_tokens
from fedpeft.models.source import ModelRequest, load_model
from fedpeft.tuning.methods import TuningRequest, tune

ALONE = TextExamples(*flat_tokens([list(range(1, 21)), [3, 4]]), None, 0)
PACKED, _ = pack_clients(ALONE, {"a": np.arange(2)}, length=24)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return chat_folder(tmp_path_factory.mktemp("qwen2"))


def tuned(folder, method: str = "lora", **options: object):
    loaded = load_model(ModelRequest(str(folder), "causal-lm"))
    return tune(loaded, TuningRequest(method, options))


@pytest.mark.parametrize("method", ["lora", "bias", "adapter", "ia3", "full"])
def test_methods_that_change_layers_read_examples_apart(folder, method):
    check_packed(tuned(folder, method), PACKED)


@pytest.mark.parametrize("method", ["prompt_tuning", "prefix_tuning", "p_tuning"])
def test_methods_that_put_tokens_in_front_are_refused(folder, method):
    model = tuned(folder, method, num_virtual_tokens=2)
    check_packed(model, ALONE)
    with pytest.raises(DataError, match=rf"data.packing: .*'{method}'.*set data.packing = false"):
        check_packed(model, PACKED)


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("bloom", {"n_layer": 2, "n_head": 2}),
        ("mamba", {"num_hidden_layers": 2, "state_size": 4}),
    ],
)
def test_models_without_places_or_with_a_memory_are_refused(kind, more, tmp_path):
    config = AutoConfig.for_model(kind, vocab_size=40, hidden_size=16, **more)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(DataError, match=r"data.packing: found true, but (Bloom|Mamba)ForCausalLM"):
        check_packed(tuned(tmp_path, "full"), PACKED)


def test_a_window_that_is_shorter_than_an_example_is_refused(tmp_path):
    config = AutoConfig.for_model("mistral", **SIZES, vocab_size=40, sliding_window=16)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    model = tuned(tmp_path)
    with pytest.raises(DataError, match=r"16 tokens at most \(sliding_window\).* has 20"):
        check_packed(model, PACKED)
    short, _ = pack_clients(TextExamples(*flat_tokens([[1, 2], [3, 4]]), None, 0),
                            {"a": np.arange(2)}, length=24)  # fmt: skip
    check_packed(model, short)


def test_a_task_that_reads_no_positions_is_refused(folder):
    model = tuned(folder)
    task = model.loaded.task
    blind = replace(
        task,
        score=lambda net, batch: task.score(
            net, {name: value for name, value in batch.items() if name != "position_ids"}
        ),
    )
    with pytest.raises(DataError, match=r"does not read packed examples as it reads each alone"):
        check_packed(replace(model, loaded=replace(model.loaded, task=blind)), PACKED)
