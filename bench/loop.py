"""Row 1: a bare PyTorch loop over the clients against ours, at sizes where arithmetic rules.

one worker     both compute with one thread: what messages, combining and the engine cost
all cores      ours with a worker a core, the loop with as many threads
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.assignment import distance, write_work
from bench.children import Session
from bench.figures import Report, check, figure, pairwise
from bench.machine import SCRATCH, cores, others

__all__ = ["run", "text_folder"]

_COHORT, _EXAMPLES = 4, 32
_WORDS = [
    "river",
    "stone",
    "cloud",
    "market",
    "window",
    "garden",
    "letter",
    "signal",
    "copper",
    "winter",
    "bridge",
    "engine",
]


@dataclass(frozen=True)
class Job:
    """One model at one local batch.

    Attributes:
      name: in words.
      settings: of the model and its data.
      batch: examples of a local batch.
    """

    name: str
    settings: Mapping[str, Any]
    batch: int


def run(small: bool) -> Report:
    """Measure both models at local batches 16 and 32, with one thread and with all cores."""
    figures, checks, busy = [], [], [others()]
    for job in _jobs(small=small):
        for workers in (1,) if small else (1, cores()):
            found, held = _compare(job, workers, rounds=2 if small else 5)
            figures.append(found)
            checks.append(held)
            busy.append(others())
    notes = [
        f"LoRA, rounds of {_COHORT} clients of {_EXAMPLES} examples, one epoch; ours includes "
        "messages, combining and checks. Rounds take turns, the first of each is left out.",
        "The ViT has 6 blocks of width 192 on pictures of 32 x 32, patch 4, and random weights; "
        "every text has 64 tokens.",
    ]
    return {"figures": figures, "checks": checks, "notes": notes, "busy": busy}


def _jobs(*, small: bool) -> list[Job]:
    if small:
        return [Job("toy ViT", {"model.name": "preset:tiny-vit"}, 16)]
    vit = {"model.name": str(_vit_folder(SCRATCH / "vit-2.7m"))}
    text = {
        "model.name": "minilm",
        "data.source": str(text_folder(SCRATCH / "row1-texts", texts=8 * _EXAMPLES)),
        "data.max_length": 64,
    }
    models = (("MiniLM", text), ("ViT of 2.7 M", vit))
    return [Job(f"{name}, local batch {b}", what, b) for name, what in models for b in (16, 32)]


def _settings(job: Job, workers: int, rounds: int) -> dict[str, Any]:
    return {
        "tuning.method": "lora",
        "data.partition.scheme": "iid",
        "data.partition.clients": 8,
        "data.budget": 8 * _EXAMPLES,
        "federation.rounds": rounds,
        "federation.clients_per_round": _COHORT,
        "client.epochs": 1,
        "client.batch_size": job.batch,
        "client.lr": 0.01,
        "engine.workers": workers,
        "engine.clients_per_pass": 1,
        **job.settings,
    }


def _compare(job: Job, workers: int, *, rounds: int) -> tuple[Report, Report]:
    threads = workers
    folder = SCRATCH / "row1"
    shutil.rmtree(folder, ignore_errors=True)
    settings = _settings(job, workers, rounds)
    write_work(folder, settings)
    with Session("bench.contestants.loop", threads=threads, log=SCRATCH / "loop.log") as loop:
        with Session("bench.contestants.ours", threads=1, log=SCRATCH / "ours.log") as ours:
            loop.call("open", folder=str(folder))
            ours.call("open", settings=settings)
            bare, own = [], []
            for number in range(1, rounds + 1):
                bare.append(float(loop.call("round", number=number, threads=threads)))
                own.append(float(ours.call("round")))
            theirs = float(loop.call("finish", out=str(folder / "loop.safetensors")))
            score = float(ours.call("finish", out=str(folder / "ours.safetensors")))
    apart = distance(folder / "ours.safetensors", folder / "loop.safetensors")
    one = workers == 1
    name = f"{job.name}: " + (
        "one worker, one thread" if one else f"{workers} workers, {threads} threads"
    )
    sides = {"loop": {"threads": threads, "round_seconds": bare[1:]},
             "fedpeft": {"workers": workers, "round_seconds": own[1:]}}  # fmt: skip
    found = figure(name, pairwise(bare[1:], own[1:]), target=0.97 if one else 1.3, sides=sides)
    detail = f"accuracy {score:.4f} and {theirs:.4f} (within 0.01), delta {apart:.1e} apart"
    ok = abs(score - theirs) <= 0.01 and apart <= 1e-2
    return found, check(f"{name}: same result", ok, detail + " (within 1e-2)")


def _vit_folder(folder: Path) -> Path:
    """Write the ViT with random weights, as `transformers` does."""
    import torch
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        hidden_size=192, num_hidden_layers=6, num_attention_heads=3, intermediate_size=768,
        image_size=32, patch_size=4, num_labels=10, hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    torch.manual_seed(1)
    ViTForImageClassification(config).save_pretrained(folder)
    picture = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "size": {"height": 32, "width": 32}}
    (folder / "preprocessor_config.json").write_text(json.dumps(picture), "utf-8")
    return folder


def text_folder(folder: Path, *, texts: int) -> Path:
    """Write texts of 100 words in two classes, more than 64 tokens each, and 64 to test."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(1)
    for split, count in (("train", texts), ("test", 64)):
        lines = []
        for number in range(count):
            own = _WORDS[: len(_WORDS) // 2] if number % 2 else _WORDS[len(_WORDS) // 2 :]
            words = draw.choice([*own, *own, *_WORDS], 100)
            lines.append(json.dumps({"text": " ".join(words), "label": number % 2}))
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
    return folder
