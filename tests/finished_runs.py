"""Run folders as a finished run leaves them: real small models and deltas, made-up figures."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    ViTConfig,
    ViTForImageClassification,
)

from fedpeft.build.model import build_tuned
from fedpeft.core.deltas import digest_of
from fedpeft.experiment.experiment import Experiment
from fedpeft.experiment.read import dump_experiment
from fedpeft.experiment.resolve import Resolved, resolve
from fedpeft.tuning.tuned import read_buffers, read_delta

SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
TASKS = {"vit": "image-classification", "bert": "text-classification", "llama": "causal-lm"}


def model_folder(kind: str, folder: Path) -> Path:
    """Save a small pretrained model; the BERT lacks its pooler, as many encoders do."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if kind == "vit":
            config = ViTConfig(**SMALL, image_size=8, patch_size=4, num_labels=5)
            model = ViTForImageClassification(config)
            (folder / "preprocessor_config.json").write_text('{"image_mean": [0.4, 0.4, 0.4]}')
        elif kind == "bert":
            config = BertConfig(**SMALL, vocab_size=40, max_position_embeddings=24, num_labels=2)
            model = BertForSequenceClassification(config)
            (folder / "vocab.txt").write_text("[PAD]\n")
        else:
            config = LlamaConfig(**SMALL, vocab_size=40, max_position_embeddings=24)
            model = LlamaForCausalLM(config)
    state = {name: tensor for name, tensor in model.state_dict().items() if "pooler" not in name}
    model.save_pretrained(folder, state_dict=state)
    return folder


def experiment(model: Path | str, kind: str, method: str, **options: object) -> Experiment:
    table: dict[str, object] = {"name": str(model), "task": TASKS[kind]}
    if kind != "llama":
        table["num_labels"] = 3
    return resolve(
        Experiment.model_validate(
            {
                "name": "small",
                "model": table,
                "tuning": {"method": method, "options": options},
                "federation": {"rounds": 2, "clients_per_round": 2},
            }
        )
    ).experiment


def write_finished(folder: Path, chosen: Experiment) -> Path:
    """Write a finished run whose delta has moved away from its start."""
    folder.mkdir(parents=True)
    tuned = build_tuned(Resolved(chosen), chosen.model.num_labels)
    generator = torch.Generator().manual_seed(1)
    start = read_delta(tuned)
    delta = start + 0.1 * torch.randn(start.shape, generator=generator)
    tensors = tuned.spec.unflatten(delta) | tuned.buffer_spec.unflatten(read_buffers(tuned) + 0.5)
    copies = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    save_file(copies, folder / "delta.safetensors", {"format": "fedpeft-delta-1"})
    (folder / "experiment.toml").write_text(dump_experiment(chosen))
    metric = tuned.loaded.task.headline.name
    write_records(folder, metric=metric, rounds=2)
    partition = {"clients": ["a", "b"], "labels": ["x", "y", "z"], "counts": [[3, 0, 1], [0, 2, 2]]}
    (folder / "partition.json").write_text(json.dumps(partition))
    summary = {
        "method": chosen.tuning.method,
        "seed": chosen.seed,
        "rounds": 2,
        metric: 0.5,
        "trainable_parameters": tuned.spec.num_params,
        "payload_bytes": tuned.spec.num_bytes,
        "delta_digest": digest_of(delta),
        "seconds": 3.0,
        "epsilon": None,
        "stopped": "rounds",
    }
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def write_records(folder: Path, *, metric: str, rounds: int, scale: float = 1.0) -> None:
    lines = [
        {
            "round": number,
            "cohort": ["a", "b"],
            "failures": {},
            "metrics": {"loss": 1.0, metric: scale * number / 10},
            "bytes_up": 200,
            "bytes_down": 220,
            "seconds": 1.5,
        }
        for number in range(1, rounds + 1)
    ]
    (folder / "rounds.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def inputs(kind: str) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    if kind == "vit":
        return {"pixel_values": torch.randn(4, 3, 8, 8, generator=generator)}
    tokens = torch.randint(1, 40, (4, 6), generator=generator)
    return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}


def logits(model: torch.nn.Module, kind: str) -> torch.Tensor:
    extra = {"use_cache": False} if kind == "llama" else {}
    with torch.no_grad():
        return model(**inputs(kind), **extra).logits
