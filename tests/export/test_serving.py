"""Exports of language models are what servers of models read."""

from __future__ import annotations

import json
import re

import pytest
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

from fedpeft.answers.generate import Decoding
from fedpeft.export.export import export_run
from fedpeft.inference.inputs import Input
from fedpeft.inference.predict import predict
from fedpeft.models.quiet import quiet
from fedpeft.runs.load import load_before_and_after


@pytest.fixture(scope="module")
def merged(language_run, tmp_path_factory):
    from pathlib import Path

    return export_run(Path(language_run), tmp_path_factory.mktemp("out") / "m", form="merged")


def predicted(run, text):
    from pathlib import Path

    [found] = predict(load_before_and_after(Path(run)), [Input("", text)], Decoding(8), both=False)
    return found.after


def test_the_pipeline_of_transformers_answers_as_the_run(language_run, merged):
    messages = [{"role": "user", "content": "the number 3"}]
    with quiet():
        answering = pipeline("text-generation", model=str(merged))
        found = answering(messages, max_new_tokens=8, do_sample=False)
    assert found[0]["generated_text"][-1]["content"].strip() == predicted(
        language_run, "the number 3"
    )


def test_a_merged_model_brings_template_and_end_of_text(merged):
    tokenizer, model = (
        kind.from_pretrained(merged) for kind in (AutoTokenizer, AutoModelForCausalLM)
    )
    assert tokenizer.chat_template
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id


def test_an_adapter_keeps_to_the_rules_of_vllm(language_run, tmp_path):
    """r, lora_alpha and target_modules; no head, no DoRA; names that end in a LoRA weight."""
    from pathlib import Path

    folder = export_run(Path(language_run), tmp_path / "out")
    config = json.loads((folder / "adapter_config.json").read_text())
    assert {"r", "lora_alpha", "target_modules"} <= {*config}
    assert not config["modules_to_save"] and not config["use_dora"] and config["bias"] == "none"
    form = re.compile(r"base_model\.model\.[\w.]+\.lora_[AB]\.weight")
    assert all(map(form.fullmatch, load_file(folder / "adapter_model.safetensors")))
