"""Whole runs of language models on conversations: figures, passes, privacy, export."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from chat_models import CHATML, answer, chat_folder, user
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import fedpeft
from fedpeft.core.errors import FedpeftError
from fedpeft.experiment.read import DIGITS
from fedpeft.export.export import export_run

WORDS = ("one", "two", "three", "four")
SHORT = {"federation.rounds": 1, "client.epochs": 1, "client.batch_size": 8}
PLAIN = "{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def model(kind: str) -> Path:
        if kind not in made:
            made[kind] = chat_folder(tmp_path_factory.mktemp(kind), kind)
        return made[kind]

    return model


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("talks")
    for split, count in (("train", 24), ("test", 8)):
        rows = [
            {"messages": [user(f"say {WORDS[n % 4]}"), answer(WORDS[n % 4] * (1 + n % 3))],
             "client": f"c{n % 3}"}
            for n in range(count)
        ]  # fmt: skip
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def keys(model: Path, source: Path, **more: object) -> dict[str, object]:
    return {
        "model.name": str(model), "data.source": str(source), "data.max_length": 96,
        "tuning.method": "lora", "tuning.options": {"r": 2},
        "data.partition.scheme": "natural", "data.partition.min_examples": 1,
        "federation.rounds": 2, "federation.clients_per_round": 3, "client.epochs": 2,
        "client.batch_size": 2, "client.lr": 0.2, "engine.workers": 1, **more,
    }  # fmt: skip


def delta_of(folder: Path) -> torch.Tensor:
    return torch.cat(
        [each.flatten() for _, each in sorted(load_file(folder / "delta.safetensors").items())]
    )


@pytest.mark.parametrize("kind", ["qwen2", "llama"])
def test_answers_are_learnt_and_clients_of_a_pass_learn_what_each_learns_alone(
    kind, folders, source, tmp_path
):
    model = folders(kind)
    alone, joined = (
        fedpeft.run(
            None, keys(model, source, **{"engine.clients_per_pass": k}), out=tmp_path / str(k)
        )
        for k in (1, 3)
    )
    first, *_, last = [
        json.loads(line)["metrics"]["perplexity"]
        for line in (tmp_path / "1" / "rounds.jsonl").read_text().splitlines()
    ]
    assert math.isfinite(first) and alone["perplexity"] == last < first
    one, many = delta_of(tmp_path / "1"), delta_of(tmp_path / "3")
    assert torch.allclose(one, many, rtol=1e-3, atol=1e-5) and joined["perplexity"] < first


@pytest.mark.parametrize("privacy", [
    {"privacy.mode": "central", "privacy.clip_norm": 1.0, "privacy.noise_multiplier": 0.1},
    {"privacy.mode": "example", "privacy.clip_norm": 1.0, "privacy.noise_multiplier": 0.1},
])  # fmt: skip
def test_private_runs_take_conversations(privacy, folders, source, tmp_path):
    found = fedpeft.run(
        None, {**keys(folders("qwen2"), source, **privacy), **SHORT}, out=tmp_path / "run"
    )
    assert math.isfinite(found["perplexity"]) and found["epsilon"] > 0


def test_a_run_keeps_the_template_and_its_export_has_it(folders, source, tmp_path):
    file = tmp_path / "own.jinja"
    file.write_text(PLAIN)
    asked = keys(folders("qwen2"), source, **{"data.chat_template": str(file)})
    first = fedpeft.run(DIGITS, asked, out=tmp_path / "run")
    file.unlink()
    again = fedpeft.run(tmp_path / "run" / "experiment.toml", out=tmp_path / "again")
    assert again["delta_digest"] == first["delta_digest"]
    tokenizer = AutoTokenizer.from_pretrained(export_run(tmp_path / "run", tmp_path / "export"))
    assert tokenizer.chat_template == PLAIN != CHATML
    merged = export_run(tmp_path / "run", tmp_path / "merged", form="merged")
    assert AutoModelForCausalLM.from_pretrained(merged).config.vocab_size > 256


def test_a_tokenizer_without_a_template_ends_the_run_before_round_1(source, tmp_path):
    model = chat_folder(tmp_path / "base", template=None)
    with pytest.raises(FedpeftError, match="has no chat template"):
        fedpeft.run(DIGITS, keys(model, source), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_packed_runs_learn_the_same_in_a_pass_and_alone_and_resume(folders, source, tmp_path):
    packed = keys(folders("qwen2"), source, **{"data.packing": True, "client.batch_size": 1})
    runs = {
        "alone": {"engine.clients_per_pass": 1},
        "pass": {"engine.clients_per_pass": 3},
        "workers": {"engine.clients_per_pass": 1, "engine.workers": 2},
    }
    found = {
        name: fedpeft.run(DIGITS, {**packed, **more}, out=tmp_path / name)
        for name, more in runs.items()
    }
    assert found["alone"]["delta_digest"] == found["workers"]["delta_digest"]
    alone, joined = delta_of(tmp_path / "alone"), delta_of(tmp_path / "pass")
    assert torch.allclose(alone, joined, rtol=1e-3, atol=1e-5)
    sizes = json.loads((tmp_path / "alone" / "rounds.jsonl").read_text().splitlines()[0])
    assert sizes["metrics"]["perplexity"] > found["alone"]["perplexity"]


def test_a_step_on_a_packed_row_is_the_step_on_its_examples(folders, source, tmp_path):
    whole = {"client.batch_size": 64, "client.epochs": 1, "federation.rounds": 1}
    whole["data.max_length"] = 512  # one row for each client: they weigh the same
    rows, packed = (
        fedpeft.run(DIGITS, keys(folders("llama"), source, **whole, **more), out=tmp_path / name)
        for name, more in {"rows": {}, "packed": {"data.packing": True}}.items()
    )
    assert torch.allclose(delta_of(tmp_path / "rows"), delta_of(tmp_path / "packed"), atol=1e-5)
    assert rows["perplexity"] == pytest.approx(packed["perplexity"], rel=1e-4)
    crossing = keys(folders("llama"), source, **whole, **{"client.lr": 0.1})
    fedpeft.run(DIGITS, crossing, out=tmp_path / "other")
    assert not torch.allclose(delta_of(tmp_path / "rows"), delta_of(tmp_path / "other"), atol=1e-5)


def test_packing_is_refused_where_epsilon_counts_examples(folders, source):
    private = {
        "privacy.mode": "example", "privacy.clip_norm": 1.0, "privacy.noise_multiplier": 1.0,
        "data.packing": True,
    }  # fmt: skip
    with pytest.raises(FedpeftError, match=r"data.packing: .*would move others to other rows"):
        fedpeft.run(DIGITS, keys(folders("qwen2"), source, **private))


def test_features_of_frozen_blocks_are_those_of_packed_examples(folders, source, tmp_path):
    late = {"data.packing": True, "tuning.blocks": [1, 1], "federation.rounds": 1}
    for kept in ("off", "memory"):
        asked = keys(folders("llama"), source, **late, **{"client.prefix_cache": kept})
        found = fedpeft.run(DIGITS, asked, out=tmp_path / kept)
        assert ("first 1 of 2 blocks" in found["prefix"]) == (kept == "memory")
    off, kept = delta_of(tmp_path / "off"), delta_of(tmp_path / "memory")
    assert torch.allclose(off, kept, rtol=1e-3, atol=1e-5)
