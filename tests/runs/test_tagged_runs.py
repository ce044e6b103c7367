"""Whole runs of the tasks whose targets are as long as a text: tags of words, and other texts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import WORDS, text_folder
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoModelForTokenClassification,
    AutoTokenizer,
    BartConfig,
    BartForConditionalGeneration,
    T5Config,
    T5ForConditionalGeneration,
)

import fedpeft
from fedpeft.experiment.read import DIGITS
from fedpeft.export.export import export_run
from fedpeft.models.quiet import quiet

T5 = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
BART = {
    **{"d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 32},
    **{"encoder_attention_heads": 2, "decoder_attention_heads": 2, "decoder_ffn_dim": 32},
    "max_position_embeddings": 40,
}
IDS = {"vocab_size": len(WORDS), "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
       "decoder_start_token_id": 0}  # fmt: skip


def settings(folder: Path, task: str, rows: list[dict[str, object]], **more: object):
    (folder / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return {
        "model.name": str(folder / "model"), "model.task": task,
        "data.source": str(folder / "data.jsonl"), "data.partition.scheme": "iid",
        "data.partition.clients": 3, "data.partition.min_examples": 1, "tuning.method": "bias",
        "federation.rounds": 2, "federation.clients_per_round": 3, "client.epochs": 2,
        "client.batch_size": 3, "client.lr": 0.1, "engine.workers": 1, **more,
    }  # fmt: skip


def records(folder: Path) -> list[dict[str, float]]:
    return [
        json.loads(line)["metrics"] for line in (folder / "rounds.jsonl").read_text().splitlines()
    ]


def delta_of(folder: Path) -> torch.Tensor:
    found = load_file(folder / "delta.safetensors")
    return torch.cat([found[name].flatten() for name in sorted(found)])


def tagged_rows() -> list[dict[str, object]]:
    words = [[f"w{(n * k) % 20}" for k in range(1, 2 + n % 6)] for n in range(30)]
    return [
        {"tokens": each, "ner_tags": ["B-X" if int(w[1:]) % 3 == 0 else "O" for w in each]}
        for each in words
    ]


@pytest.fixture(scope="module")
def tagging(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    folder = tmp_path_factory.mktemp("tags")
    text_folder(folder / "model", "bert", {}, {"pad_token": "<pad>"})
    return settings(folder, "token-classification", tagged_rows())


def test_words_are_tagged_one_by_one_and_in_a_pass(tagging, tmp_path):
    for together in (1, 3):
        asked = {**tagging, "engine.clients_per_pass": together}
        found = fedpeft.run(DIGITS, asked, out=tmp_path / str(together))
    first, *_, last = records(tmp_path / "1")
    assert {"accuracy", "f1", "loss", "train_loss"} == {*last} and last["loss"] < first["loss"]
    assert 0 <= found["accuracy"] <= 1
    one, many = delta_of(tmp_path / "1"), delta_of(tmp_path / "3")
    assert torch.allclose(one, many, rtol=1e-3, atol=1e-5)


def test_other_libraries_load_a_tagger(tagging, tmp_path):
    asked = {**tagging, "tuning.method": "lora", "federation.rounds": 1}
    fedpeft.run(DIGITS, asked, out=tmp_path / "run")
    folder = export_run(tmp_path / "run", tmp_path / "export", form="merged")
    model = AutoModelForTokenClassification.from_pretrained(folder).eval()
    assert model.config.id2label == {0: "O", 1: "B-X"}
    batch = AutoTokenizer.from_pretrained(folder)(["w1 w2 w3"], return_tensors="pt")
    ids = {name: batch[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        assert torch.allclose(
            model(**ids).logits, fedpeft.load(tmp_path / "run")(**ids).logits, atol=1e-5
        )


@pytest.fixture(scope="module", params=["t5", "bart"])
def pairs(request, tmp_path_factory) -> dict[str, object]:
    folder = tmp_path_factory.mktemp(request.param)
    text_folder(folder / "model", "bert", {}, {"pad_token": "<pad>", "eos_token": "</s>"})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if request.param == "t5":
            made = T5ForConditionalGeneration(T5Config(**IDS, **T5))
        else:
            made = BartForConditionalGeneration(BartConfig(**IDS, **BART))
    for file in (folder / "model").glob("*.safetensors"):
        file.unlink()
    made.save_pretrained(folder / "model")
    rows = [
        {
            "text": " ".join(f"w{(n + k) % 20}" for k in range(1 + n % 5)),
            "summary": f"w{n % 4} </s>",
        }
        for n in range(30)
    ]
    return settings(folder, "seq2seq-lm", rows, **{"data.max_length": 16})


@pytest.mark.parametrize(
    "method",
    ["lora", *(pytest.param(m, marks=pytest.mark.slow) for m in ("prefix_tuning", "ia3", "full"))],
)
def test_texts_are_learnt_from_texts(pairs, tmp_path, method):
    rate = 0.05 if method == "full" else 0.5
    asked = {**pairs, "tuning.method": method, "client.lr": rate}
    found = fedpeft.run(DIGITS, asked, out=tmp_path / "run")
    first, *_, last = records(tmp_path / "run")
    assert last["loss"] < first["loss"] and found["perplexity"] == last["perplexity"]
    folder = export_run(tmp_path / "run", tmp_path / "export")
    ids = torch.tensor([[1, 5, 6, 7]])
    start = torch.tensor([[0, 5]])
    ours = fedpeft.load(tmp_path / "run")
    theirs = reloaded(folder, method)
    with torch.no_grad(), quiet():
        logits = [m(input_ids=ids, decoder_input_ids=start).logits for m in (ours, theirs)]
    assert torch.allclose(*logits, atol=1e-4)


def reloaded(folder: Path, method: str) -> torch.nn.Module:
    if method == "full":
        return AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    from peft import PeftModel

    base = AutoModelForSeq2SeqLM.from_pretrained(folder / "base")
    with quiet():
        return PeftModel.from_pretrained(base, folder).eval()
