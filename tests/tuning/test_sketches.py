"""Sketches of tuned models: no memory for tensors, whatever sizes an experiment asks for."""

from __future__ import annotations

import pytest
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fedpeft.core.errors import TuningError
from fedpeft.models.source import ModelRequest, load_model, sketch_model
from fedpeft.tuning import hf_peft
from fedpeft.tuning.methods import TuningRequest, resolve_options, tune

RANK = 300


class Largest(TorchDispatchMode):
    """Keeps the number of elements of the largest tensor that is made on a CPU."""

    def __init__(self):
        super().__init__()
        self.found = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(made):
            if getattr(leaf, "device", None) is not None and leaf.device.type == "cpu":
                self.found = max(self.found, leaf.numel())
        return made


@pytest.mark.parametrize("method", ["lora", "dora", "loha", "vera"])
def test_a_sketch_takes_no_memory_for_what_trains(method):
    sketch = sketch_model(ModelRequest("preset:tiny-vit", num_labels=3))
    with Largest() as largest:
        tuned = tune(sketch, TuningRequest(method, {"r": RANK}))
    assert tuned.spec.num_params >= RANK and largest.found < RANK


def test_a_real_model_takes_it():
    """The negative control."""
    loaded = load_model(ModelRequest("preset:tiny-vit", num_labels=3))
    with Largest() as largest:
        tune(loaded, TuningRequest("lora", {"r": RANK}))
    assert largest.found >= RANK


@pytest.mark.parametrize(
    ("method", "key", "most"),
    [
        ("lora", "r", 100_000),
        ("prompt_tuning", "num_virtual_tokens", 100_000),
        ("prompt", "num_tokens", 100_000),
        ("p_tuning", "encoder_num_layers", 100),
        ("peanut", "depth", 100),
    ],
)
def test_sizes_that_nobody_means_are_refused(method, key, most):
    with pytest.raises(TuningError, match=f"{key} = 1000000000: expected .*at most {most:,}"):
        resolve_options(method, {key: 10**9})
    resolve_options(method, {key: most})


def test_a_rank_of_one_layer_is_bounded_too():
    resolve_options("lora", {"rank_pattern": {"q_proj": 8}})
    with pytest.raises(TuningError, match="found a rank of 1000000; expected at most 100,000"):
        resolve_options("lora", {"rank_pattern": {"q_proj": 10**6}})


def test_targets_that_are_no_layers_do_not_reach_the_library(monkeypatch):
    reached = []
    fields = hf_peft._fields
    monkeypatch.setattr(
        hf_peft, "_fields", lambda *args: reached.append(fields(*args)) or reached[-1]
    )
    strange = [f"nothing{i}" for i in range(500)]
    for targets, left in (([*strange, "q_proj"], ["q_proj"]), (strange, strange[:10])):
        sketch = sketch_model(ModelRequest("preset:tiny-llama", num_labels=3))
        try:
            tune(sketch, TuningRequest("lora", {"target_modules": targets}))
        except TuningError as error:
            assert left == strange[:10] and len(str(error)) < 1000
        assert reached[-1]["target_modules"] == left
    with pytest.raises(TuningError, match="found 12,001 entries; expected at most 12,000"):
        resolve_options("lora", {"target_modules": ["a"] * 12_001})
