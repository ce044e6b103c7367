"""A run whose frozen weights are stored in half precision: loaded, exported, resumed, shared."""

from __future__ import annotations

import json

import chat_models
import pytest
import safetensors.torch
import torch
import tried_runs
from peft import AutoPeftModelForCausalLM
from transformers import AutoModelForCausalLM

import fedpeft
from fedpeft.export.export import export_run
from fedpeft.models.quiet import quiet

TOKENS = torch.tensor([[3, 5, 7, 9, 4, 6]])


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """A model in float32 that is to be stored in bfloat16, and texts."""
    folder = tmp_path_factory.mktemp("stored")
    model = chat_models.chat_folder(folder / "model", "llama")
    rows = [{"text": f"the number {i} is followed by {i + 1}"} for i in range(20)]
    (folder / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "model": {"name": str(model), "task": "causal-lm", "dtype": "bfloat16"},
        "tuning": {"method": "lora", "options": {"lora_alpha": 120}},
        "data": {"source": str(folder / "texts.jsonl"), "max_length": 16},
        "client": {"gradient_checkpointing": True, "max_steps": 2, "batch_size": 2},
    }


def run(table, out, resume=False, **keys):
    return fedpeft.run(table, tried_runs.QUICK | keys, out=out, resume=resume)


@pytest.fixture(scope="module")
def finished(table, tmp_path_factory):
    out = tmp_path_factory.mktemp("finished") / "run"
    return run(table, out, **{"federation.rounds": 2}), out


def logits(model):
    with torch.no_grad():
        return model(TOKENS).logits


def test_a_loaded_run_has_the_numbers_that_were_stored(table, finished):
    model = fedpeft.load(finished[1])
    name = "model.embed_tokens.weight"
    file = f"{table['model']['name']}/model.safetensors"
    original = safetensors.torch.load_file(file)[name]
    found = dict(model.named_parameters())[name]
    assert found.dtype is torch.float32
    assert torch.equal(found, original.bfloat16().float()) and not torch.equal(found, original)


@pytest.mark.parametrize("form", ["", "adapter", "merged"])
def test_an_export_computes_what_the_run_computes(finished, form, tmp_path):
    out = export_run(finished[1], tmp_path / "export", form=form)
    expected = logits(fedpeft.load(finished[1]))
    assert torch.allclose(logits(fedpeft.load(out)), expected, atol=1e-5)
    if form == "adapter":  # its base is the original model, which others load as they like
        return
    kind = AutoModelForCausalLM if form else AutoPeftModelForCausalLM
    with quiet():
        stock = kind.from_pretrained(out)
    assert torch.allclose(logits(stock.eval()), expected, atol=1e-5)
    config = json.loads((out / ("" if form else "base") / "config.json").read_text())
    assert config["dtype"] == "float32"


def test_stopped_and_resumed_or_with_workers_it_is_the_same(table, finished, tmp_path):
    run(table, tmp_path / "cut")
    more = {"federation.rounds": 2}
    resumed = run(table, tmp_path / "cut", resume=True, **more)
    shared = run(table, tmp_path / "shared", **more, **{"engine.workers": 2})
    plain = run(
        table | {"model": table["model"] | {"dtype": "float32"}}, tmp_path / "plain", **more
    )
    digests = [summary["delta_digest"] for summary in (finished[0], resumed, shared, plain)]
    assert digests[0] == digests[1] == digests[2] != digests[3]
