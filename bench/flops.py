"""Row 8: arithmetic of a training round against the peak of matrix products in the same process.

    forward     2 (12 d^2 L + 3 p^2 d) T + 4 L T^2 d      a picture: linear layers, attention
    last block  2 (2 d^2 T + 10 d^2) + 4 T d              keys and values of all tokens, one query
    backward    through activations only: the frozen linear layers once more, attention twice
    peak        2 n^3 / seconds of a product of two n x n matrices, n = 2048

L blocks of width d, T tokens, patches of p x p. Operations of layer norms, GELU, softmax, biases
and LoRA's own factors are left out, so the share is a lower bound.
"""

from __future__ import annotations

import time
from typing import Any

import torch

from bench.assignment import experiment_of
from bench.figures import Report, check, figure
from bench.machine import others
from fedpeft.build.run import build_run
from fedpeft.experiment.resolve import resolve
from fedpeft.rounds.buffered import advance

__all__ = ["run", "training_flops"]


def training_flops(*, blocks: int, width: int, tokens: int, patch: int) -> float:
    """Return operations of one picture, forward and backward, all blocks tuned.

    Counted is what is computed: the last block for the one token that the head reads.
    """
    full = blocks - 1
    linear = 2.0 * width**2 * (12 * full * tokens + 2 * tokens + 10)
    embedding = 2.0 * 3 * patch**2 * width * (tokens - 1)
    attention = 4.0 * width * (full * tokens**2 + tokens)
    return 2 * linear + embedding + 3 * attention


def run(small: bool) -> Report:
    """Train rounds of one client of 16 pictures, and multiply matrices between them."""
    torch.set_num_threads(1)
    name, batch, repeats = ("tiny-vit", 16, 2) if small else ("vit-base-patch16-224", 16, 4)
    settings = {
        "model.name": f"preset:{name}",
        "tuning.method": "lora",
        "data.partition.scheme": "iid",
        "data.partition.clients": 2,
        "data.budget": 2 * batch,
        "federation.rounds": repeats + 1,
        "federation.clients_per_round": 1,
        "client.epochs": 1,
        "client.batch_size": batch,
        "client.lr": 0.01,
        "engine.workers": 1,
        "engine.clients_per_pass": 1,
    }
    built = build_run(resolve(experiment_of(settings)))
    config: Any = built.tuned.loaded.module.config
    tokens = (config.image_size // config.patch_size) ** 2 + 1
    flops = batch * training_flops(
        blocks=config.num_hidden_layers,
        width=config.hidden_size,
        tokens=tokens,
        patch=config.patch_size,
    )
    busy, ratios, rounds, peaks = [others()], [], [], []
    state, failures = built.start, 0
    try:
        for number in range(repeats + 1):
            before = _peak(256 if small else 2048)
            began = time.perf_counter()
            state, record = advance(state, built.plan, built.engine)
            seconds = time.perf_counter() - began
            failures += len(record.failures)
            peak = max(before, _peak(256 if small else 2048))
            if number:
                rounds.append(seconds)
                peaks.append(peak)
                ratios.append(flops / seconds / peak)
    finally:
        built.engine.close()
    busy.append(others())
    title = f"{name}, LoRA, batch {batch}, one thread"
    sides = {"round_seconds": rounds, "peak_flops": peaks, "round_flops": flops}
    moved = bool((state.delta != built.start.delta).any()) and not failures
    return {
        "figures": [figure(title, ratios, target=0.7, sides=sides)],
        "checks": [check("the rounds trained", moved, f"{len(rounds)} rounds without a failure")],
        "notes": [
            "The peak is the better of a product before and one after each round, one thread."
        ],
        "busy": busy,
    }


def _peak(size: int) -> float:
    """Return operations a second of a product of two square matrices: the best of three."""
    one = torch.randn(size, size)
    best = float("inf")
    for _ in range(3):
        began = time.perf_counter()
        one @ one
        best = min(best, time.perf_counter() - began)
    return 2.0 * size**3 / best
