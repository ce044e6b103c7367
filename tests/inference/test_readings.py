"""Predictions of every kind of target, each as the model's own outputs say."""

from __future__ import annotations

import json
from pathlib import Path

import chat_models
import pytest
import tiny_models
import torch
from transformers import T5Config, T5ForConditionalGeneration
from typer.testing import CliRunner

import fedpeft
from fedpeft.answers.generate import Decoding
from fedpeft.cli.app import app
from fedpeft.inference.inputs import Input, read_inputs
from fedpeft.inference.predict import predict
from fedpeft.inference.readings import Labels, Number, Tags
from fedpeft.models.padding import open_tokenizer
from fedpeft.models.tasks import TASKS
from fedpeft.runs.load import load_before_and_after

QUICK = {
    "federation.rounds": 1,
    "federation.clients_per_round": 2,
    "client.epochs": 1,
    "client.lr": 0.1,
    "engine.workers": 1,
    "data.partition.scheme": "iid",
    "data.partition.clients": 2,
    "data.partition.min_examples": 1,
}
WORDS = [f"w{i} w{i + 1} w{i + 2}" for i in range(15)]
ROWS = {
    "text-regression": [{"text": t, "score": float(i)} for i, t in enumerate(WORDS)],
    "text-multi-label": [
        {"text": t, "labels": [["a"], ["a", "b"], ["b", "c"]][i % 3]} for i, t in enumerate(WORDS)
    ],
    "token-classification": [{"tokens": t.split(), "tags": ["O", "X", "Y"]} for t in WORDS],
    "seq2seq-lm": [{"source": t, "target": "warm water"} for t in WORDS],
}


def model_folder(folder, task):
    if task != "seq2seq-lm":
        return tiny_models.text_folder(folder, "bert", {}, {"pad_token": "<pad>"})
    tokenizer = chat_models.chat_tokenizer()
    tokenizer.save_pretrained(folder)
    config = T5Config(
        vocab_size=len(tokenizer), d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2,
        pad_token_id=tokenizer.bos_token_id, decoder_start_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        T5ForConditionalGeneration(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=ROWS)
def run(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS[request.param]))
    table = {
        "model": {
            "name": str(model_folder(folder / "model", request.param)),
            "task": request.param,
        },
        "tuning": {"method": "lora"},
        "data": {"source": str(file), "max_length": 8},
    }
    return Path(fedpeft.run(table, QUICK, out=folder / "run")["run_dir"]), file, request.param


def expected(run, task, text):
    """Return what the model's own outputs for one text say."""
    model = fedpeft.load(run)
    tokenizer = open_tokenizer(str(model.name_or_path))
    tokens = tokenizer([text], return_tensors="pt", truncation=True, max_length=8)
    tokens = {key: tokens[key] for key in ("input_ids", "attention_mask")}
    with torch.no_grad():
        if task == "seq2seq-lm":
            found = model.generate(**tokens, max_new_tokens=6, do_sample=False, num_beams=1)
            return tokenizer.decode(found[0], skip_special_tokens=True).strip()
        logits = model(**tokens).logits[0]
    if task == "text-regression":
        return Number(pytest.approx(float(logits), abs=1e-5))
    names = model.config.id2label
    if task == "token-classification":
        best = logits.argmax(-1).tolist()[1:]  # behind <s>; a word of these is a token
        return Tags(tuple(text.split()), tuple(names[each] for each in best))
    chances = logits.sigmoid().tolist()
    return Labels({names[c]: pytest.approx(p, abs=1e-5) for c, p in enumerate(chances) if p >= 0.5})


def test_a_prediction_is_what_the_model_says(run):
    folder, _, task = run
    model = load_before_and_after(folder)
    texts = ["w3 w4 w5", "w9 w1"]
    found = list(predict(model, [Input(t, t) for t in texts], Decoding(6), both=True))
    for text, each in zip(texts, found, strict=True):
        assert each.after == expected(folder, task, text)
        assert each.before is not None
        json.dumps(each.as_json())


def test_the_rows_that_it_was_trained_on_are_read(run):
    folder, file, task = run
    inputs = read_inputs(str(file), TASKS[task])
    assert len(inputs) == len(WORDS)
    model = load_before_and_after(folder)
    [by_row] = predict(model, inputs[:1], Decoding(4), both=False)
    [by_text] = predict(model, [Input("", WORDS[0])], Decoding(4), both=False)
    assert by_row.after == by_text.after


def test_the_terminal_shows_it(run):
    folder, _, task = run
    found = CliRunner().invoke(app, ["predict", str(folder), "w3 w4 w5"])
    assert found.exit_code == 0, found.output
    assert "w3 w4 w5" in found.stdout and "after" in found.stdout
    if task == "token-classification":
        assert "w3/" in found.stdout
