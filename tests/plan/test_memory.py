"""The memory that a plan names is what a run takes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import chat_models
import pytest

from fedpeft.experiment.read import validate
from fedpeft.plan.plan import make_plan

SCRIPT = Path(__file__).parents[1] / "measured_memory.py"


def planned(**tables):
    model = {"name": "preset:tiny-llama"} | tables.pop("model", {})
    client = {"lr": 0.1, "batch_size": 4} | tables.pop("client", {})
    data = {"source": "nobody/nothing", "max_length": 32}
    table = {"model": model, "client": client, "data": data, "tuning": {"method": "lora"},
             "engine": {"workers": 1}}  # fmt: skip
    return make_plan(validate(table | tables, "x")).as_json()


def test_parts_add_up_and_follow_the_keys():
    plain = planned()
    parts = plain["memory"]
    assert plain["memory_bytes"] == sum(parts.values())
    assert parts["weights"] == 4 * plain["total_parameters"] + 32  # and 8 rotary frequencies
    half = planned(model={"dtype": "bfloat16"})["memory"]
    assert half["weights"] < 0.6 * parts["weights"] and half["delta"] == parts["delta"]
    again = planned(client={"gradient_checkpointing": True})["memory"]
    assert again["activations"] < 0.8 * parts["activations"]
    double = planned(client={"batch_size": 8})["memory"]
    assert 1.9 < double["activations"] / parts["activations"] < 2.1
    adam = planned(client={"optimizer": "adamw"})["memory"]
    assert adam["optimizer"] == 8 * plain["trainable_parameters"]


def test_what_cannot_be_known_is_left_out():
    found = planned(model={"name": "preset:tiny-vit", "num_labels": 3})
    assert found["memory"]["activations"] is None and found["memory_bytes"] > 0


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize(("width", "keys"), [
    (256, []), (512, []), (768, []), (512, ["model.dtype=bfloat16"]),
    (512, ["client.gradient_checkpointing=true"]),
])  # fmt: skip
def test_a_plan_is_within_15_percent_of_a_run(width, keys, tmp_path):
    sizes = {"num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 4}
    for name, size in (("small", 16), ("model", width)):
        chat_models.chat_folder(
            tmp_path / name, "llama", hidden_size=size, intermediate_size=3 * size, **sizes
        )
    rows = [{"text": f"the number {i} is followed by {i + 1} " * 12} for i in range(60)]
    texts = tmp_path / "texts.jsonl"
    texts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = [sys.executable, SCRIPT, tmp_path / "small", tmp_path / "model", texts, *keys]
    threads = {"MALLOC_MMAP_THRESHOLD_": "1000000", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, env=os.environ | threads, capture_output=True, text=True, check=True
    )
    plan, measured = map(int, done.stdout.split()[-2:])
    assert abs(plan - measured) < 0.15 * measured
