"""Row 8 on a GPU: ViT-B in bf16 against the measured matrix-product peak, and K clients a pass.

model FLOP/s   6 x parameters of the linear layers x tokens + attention, per second of training
peak           the fastest of some large bf16 matrix products in the same process
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from bench.figures import Report, check, figure, unavailable

if TYPE_CHECKING:
    from transformers import PretrainedConfig

__all__ = ["run", "train_flops"]


def run(small: bool) -> Report:
    """Measure where torch sees a GPU."""
    import torch

    if not torch.cuda.is_available():
        return unavailable("no GPU at hand")
    shares, losses = _shares(batch=8 if small else 256, repeats=2 if small else 5)
    peak = _peak(2048 if small else 8192)
    figures = [
        figure(
            "bf16 ViT-B, full fine-tuning, batch 256: model FLOP/s over bf16 matrix-product peak",
            [share / peak for share in shares],
            target=0.4,
            sides={
                "peak_tflops": round(peak / 1e12, 1),
                "model_tflops": [s / 1e12 for s in shares],
            },
        )
    ]
    slow, fast = _passes(small=small)
    ratios = [a / b for a, b in zip(slow, fast, strict=True)]
    sides = {"one at a time": {"round_seconds": slow}, "K = 16": {"round_seconds": fast}}
    name = "ViT-B, LoRA, local batch 8: 16 clients in one pass against one at a time"
    figures.append(figure(name, ratios, target=3.0, sides=sides))
    finite = all(loss == loss for loss in losses)
    return {
        "figures": figures,
        "checks": [check("losses are finite", finite, f"last loss {losses[-1]:.3f}")],
        "notes": [f"{torch.cuda.get_device_name(0)}, torch {torch.__version__}"],
        "busy": [],
    }


def train_flops(config: PretrainedConfig, batch: int, tokens: int) -> float:
    """Return the floating-point operations of a training step of every weight.

    Forward and backward are three times the forward pass: products of the linear layers, and
    queries by keys and weights by values.

    Args:
      config: of a ViT: hidden_size, intermediate_size, num_hidden_layers.
      batch: examples.
      tokens: of each, class token included.
    """
    width, inner = config.hidden_size, config.intermediate_size
    linear = 2 * tokens * (4 * width * width + 2 * width * inner)
    attention = 2 * 2 * tokens * tokens * width
    return float(3 * batch * config.num_hidden_layers * (linear + attention))


def _shares(*, batch: int, repeats: int) -> tuple[list[float], list[float]]:
    """Model FLOP/s of some repetitions of five steps, and the losses."""
    import torch
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(num_labels=100)
    model: Any = ViTForImageClassification(config).cuda().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    images = torch.randn(batch, 3, 224, 224, device="cuda")
    labels = torch.randint(0, 100, (batch,), device="cuda")
    losses: list[float] = []

    def steps(number: int) -> None:
        for _ in range(number):
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast("cuda", dtype=torch.bfloat16):
                loss = model(pixel_values=images, labels=labels).loss
            loss.backward()
            optimizer.step()
        losses.append(float(loss.detach()))

    steps(3)
    flops = 5 * train_flops(config, batch, 197)
    return [flops / _timed(lambda: steps(5)) for _ in range(repeats)], losses


def _peak(size: int) -> float:
    """FLOP/s of the fastest of some bf16 matrix products."""
    import torch

    a = torch.randn(size, size, device="cuda", dtype=torch.bfloat16)
    b = torch.randn(size, size, device="cuda", dtype=torch.bfloat16)

    def products() -> None:
        for _ in range(10):
            a @ b

    products()
    return 10 * 2 * size**3 / min(_timed(products) for _ in range(5))


def _passes(*, small: bool) -> tuple[list[float], list[float]]:
    """Seconds of rounds, one client at a time and 16 in one pass, in turns."""
    from bench.contestants.ours import open_session

    settings = {
        "model.name": "preset:vit-base-patch16-224",
        "tuning.method": "lora",
        "data.partition.scheme": "iid",
        "data.partition.clients": 64,
        "data.budget": 64 * 8,
        "federation.rounds": 8,
        "federation.clients_per_round": 16,
        "client.epochs": 1 if small else 4,
        "client.batch_size": 8,
        "client.lr": 0.01,
        "engine.device": "cuda",
        "engine.precision": "bf16",
    }
    one = open_session({**settings, "engine.clients_per_pass": 1})
    many = open_session({**settings, "engine.clients_per_pass": 16})
    one["round"](), many["round"]()
    slow, fast = [], []
    for _ in range(2 if small else 5):
        slow.append(float(one["round"]()))
        fast.append(float(many["round"]()))
    one["close"](), many["close"]()
    return slow, fast


def _timed(work: Callable[[], None]) -> float:
    import torch

    torch.cuda.synchronize()
    began = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return time.perf_counter() - began
