"""Row 6: what clients and workers add to memory.

cohort     peak resident memory of a run with one worker, 64 clients a round against one
workers    proportional set size of all processes after a round, in which a page that k processes
           share counts 1/k in each: what a third worker adds to two, with the whole backbone and
           with one of a single block; the difference is what the backbone itself costs a worker
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.figures import Report, check, figure
from bench.machine import ROOT, SCRATCH, child_environment, others

__all__ = ["main", "run"]

_BIG = "preset:vit-base-patch16-224"
_SETTLED = 0.5
"""Seconds after a round, in which workers give freed memory back."""


def run(small: bool) -> Report:
    """Measure both; each measurement is a process of its own."""
    busy = [others()]
    cohorts, held = _cohorts(small=small)
    workers, shared = _workers(small=small)
    busy.append(others())
    notes = [
        "The MiniLM run: LoRA, clients of 8 texts, one round. The workers: one picture a client, "
        "measured after the round, while they wait. During a step a worker also holds what its "
        "backward pass needs: with head tuning nothing of the blocks, with bias tuning some "
        "3.5 MB a block of ViT-B and picture.",
    ]
    return {
        "figures": [cohorts, *workers],
        "checks": [held, shared],
        "notes": notes,
        "busy": busy,
    }


def _cohorts(*, small: bool) -> tuple[Report, Report]:
    model = {"model.name": "preset:tiny-vit"} if small else _texts()
    many = 8 if small else 64
    peaks: dict[int, list[int]] = {1: [], many: []}
    for _ in range(1 if small else 3):
        for cohort, seen in peaks.items():
            seen.append(_child(_cohort_settings(model, many, cohort))["peak_bytes"])
    ratios = [a / b for a, b in zip(peaks[many], peaks[1], strict=True)]
    sides = {f"cohort_{cohort}_peak_bytes": seen for cohort, seen in peaks.items()}
    title = f"peak of one worker, a cohort of {many} against a single client"
    found = figure(title, ratios, target=1.3, at_most=True, sides=sides)
    return found, check("every run trained its cohort", True, f"cohorts of 1 and {many}")


def _workers(*, small: bool) -> tuple[list[Report], Report]:
    whole, one = _backbones(small=small)
    figures, kept = [], True
    for method in ("head", "bias"):
        sizes: dict[str, list[int]] = {}
        backbone = 0
        for name, folder in (("whole", whole), ("one block", one)):
            held = [_child(_worker_settings(folder, method, workers)) for workers in (2, 3)]
            sizes[name] = [each["proportional_bytes"] for each in held]
            backbone = max(backbone, held[0]["backbone_bytes"])
        added = {name: three - two for name, (two, three) in sizes.items()}
        share = (added["whole"] - added["one block"]) / backbone
        sides = {"backbone_bytes": backbone, "proportional_bytes": sizes, "third_adds": added}
        title = f"{method}: a further worker, beyond one with one block, of the backbone's bytes"
        figures.append(figure(title, [share], target=0.1, at_most=True, sides=sides))
        kept = kept and sizes["whole"][0] > backbone
    return figures, check("the backbone is in memory", kept, "all sizes are above its bytes")


def _texts() -> Mapping[str, Any]:
    from bench.loop import text_folder

    folder = text_folder(SCRATCH / "row6-texts", texts=512)
    return {"model.name": "minilm", "data.source": str(folder), "data.max_length": 64}


def _cohort_settings(model: Mapping[str, Any], clients: int, cohort: int) -> dict[str, Any]:
    return {
        "tuning.method": "lora",
        "data.partition.scheme": "iid",
        "data.partition.clients": clients,
        "data.partition.min_examples": 1,
        "data.budget": 8 * clients,
        "federation.rounds": 1,
        "federation.clients_per_round": cohort,
        "client.epochs": 1,
        "client.batch_size": 8,
        "client.lr": 0.01,
        "engine.workers": 1,
        "engine.clients_per_pass": 1,
        **model,
    }


def _worker_settings(model: str, method: str, workers: int) -> dict[str, Any]:
    return {
        "model.name": model,
        "tuning.method": method,
        "data.partition.scheme": "iid",
        "data.partition.clients": 6,
        "data.budget": 6,
        "federation.rounds": 1,
        "federation.clients_per_round": 6,
        "client.epochs": 1,
        "client.batch_size": 1,
        "client.lr": 0.01,
        "engine.workers": workers,
        "engine.clients_per_pass": 1,
    }


def _backbones(*, small: bool) -> tuple[str, str]:
    """Return a model, and one of a single block."""
    import torch
    from transformers import ViTConfig, ViTForImageClassification

    tiny = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32}
    picture = {"image_size": 8, "patch_size": 4}
    names = []
    for blocks in (2 if small else 12, 1):
        more = {**tiny, **picture} if small else {}
        config = ViTConfig(num_hidden_layers=blocks, num_labels=10, **more)
        folder = SCRATCH / f"vit-of-{blocks}{'-tiny' if small else ''}"
        if not (folder / "model.safetensors").exists():
            torch.manual_seed(1)
            ViTForImageClassification(config).save_pretrained(folder)
        names.append(str(folder))
    return names[0], names[1]


def _child(settings: Mapping[str, Any]) -> dict[str, int]:
    """Run one round in a process of its own and return what it measured."""
    command = [sys.executable, "-m", "bench.memory", json.dumps(settings)]
    done = subprocess.run(
        command,
        env=child_environment(threads=1),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        check=True,
        timeout=600,
        text=True,
    )
    return dict(json.loads(done.stdout.splitlines()[-1]))


def main(settings: Mapping[str, Any]) -> dict[str, int]:
    """Run one round and measure this process and its workers while they are there."""
    from bench.assignment import experiment_of
    from fedpeft.build.run import build_run
    from fedpeft.experiment.resolve import resolve
    from fedpeft.rounds.buffered import advance

    built = build_run(resolve(experiment_of(settings)))
    try:
        _, record = advance(built.start, built.plan, built.engine)
        if record.failures:
            raise RuntimeError(f"clients failed: {dict(record.failures)}")
        time.sleep(_SETTLED)
        family = [os.getpid(), *_children(os.getpid())]
        frozen = [p for p in built.tuned.model.parameters() if not p.requires_grad]
        return {
            "peak_bytes": _field(Path("/proc/self/status"), "VmHWM"),
            "proportional_bytes": sum(_proportional(process) for process in family),
            "backbone_bytes": sum(p.numel() * p.element_size() for p in frozen),
            "processes": len(family),
        }
    finally:
        built.engine.close()


def _children(parent: int) -> list[int]:
    text = Path(f"/proc/{parent}/task/{parent}/children").read_text("ascii")
    return [int(word) for word in text.split()]


def _proportional(process: int) -> int:
    return _field(Path(f"/proc/{process}/smaps_rollup"), "Pss")


def _field(file: Path, name: str) -> int:
    """Return a field of a file of /proc, in bytes."""
    for line in file.read_text("ascii").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise KeyError(f"{file} has no {name}")


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
