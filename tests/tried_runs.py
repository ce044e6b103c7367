"""Finished runs of a picture, a text and a language model, each of a second."""

from __future__ import annotations

import json
from pathlib import Path

import chat_models
import tiny_models

import fedpeft

QUICK = {
    "federation.rounds": 1,
    "federation.clients_per_round": 2,
    "client.epochs": 1,
    "client.lr": 0.5,
    "engine.workers": 1,
    "data.partition.scheme": "iid",
    "data.partition.clients": 2,
    "data.partition.min_examples": 1,
}


def _run(folder: Path, table: dict[str, object]) -> str:
    return fedpeft.run(table, QUICK, out=folder / "run")["run_dir"]


def pictures_run(folder: Path) -> str:
    return _run(folder, {"model": {"name": "preset:tiny-vit"}})


def texts_run(folder: Path) -> str:
    model = tiny_models.text_folder(folder / "model", "bert", {}, {"pad_token": "<pad>"})
    rows = [
        row | {"label": ["no", "yes"][row["label"]]} for row in tiny_models.texts() if row["text"]
    ]
    (folder / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return _run(
        folder,
        {
            "model": {"name": str(model), "task": "text-classification"},
            "data": {"source": str(folder / "texts.jsonl"), "max_length": 6},
        },
    )


def language_run(folder: Path) -> str:
    model = chat_models.chat_folder(folder / "model", "qwen2")
    rows = [{"text": f"the number {i} is followed by {i + 1}"} for i in range(20)]
    (folder / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return _run(
        folder,
        {
            "model": {"name": str(model), "task": "causal-lm"},
            "tuning": {"method": "lora", "options": {"lora_alpha": 120}},
            "data": {"source": str(folder / "texts.jsonl"), "max_length": 32},
        },
    )
