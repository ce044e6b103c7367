"""Accuracy of mode `example` beside opacus, at equal epsilon, delta and unit, over five seeds.

One client holds all training digits. Both train the same delta from the same values by DP-SGD with
Poisson batches; opacus has its own coins, its own clipping, its own noise and its own accountant.

    python scripts/private_accuracy.py [--seeds 5] [--epsilon 2] [--method head]

Prints a line for each seed, the means, and the noise multipliers that both accountants ask for.
opacus is one of the development packages; the package itself does not use it.
"""

from __future__ import annotations

import argparse
import statistics
import warnings

import torch

from fedpeft.build.model import build_tuned, load_run_data
from fedpeft.experiment.read import DIGITS, read_experiment
from fedpeft.experiment.resolve import Resolved, resolve
from fedpeft.launch.simulate import simulate

DELTA, EPOCHS, BATCH, CLIP, LR = 1e-5, 6, 64, 1.0, 0.5


def main() -> None:
    """Run both and print what they reach."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epsilon", type=float, default=2.0)
    parser.add_argument("--method", default="head")
    chosen = parser.parse_args()
    warnings.filterwarnings("ignore")
    found = []
    for seed in range(1, chosen.seeds + 1):
        pair = [run(seed, chosen.epsilon, chosen.method) for run in (ours, theirs)]
        found.append([accuracy for accuracy, _ in pair])
        print(
            f"seed {seed}: fedpeft {pair[0][0]:.4f} (noise {pair[0][1]:.3f}), "
            f"opacus {pair[1][0]:.4f} (noise {pair[1][1]:.3f})",
            flush=True,
        )
    means = [statistics.mean(each) for each in zip(*found, strict=True)]
    print(f"mean: fedpeft {means[0]:.4f}, opacus {means[1]:.4f}, gap {means[1] - means[0]:+.4f}")


def experiment(seed: int, epsilon: float, method: str) -> Resolved:
    """Describe the run: one client, one round, so that training is plain DP-SGD."""
    settings = {
        "seed": seed, "tuning.method": method, "data.partition.clients": 1,
        "federation.rounds": 1, "federation.clients_per_round": 1, "engine.workers": 1,
        "client.epochs": EPOCHS, "client.batch_size": BATCH, "client.lr": LR,
        "client.momentum": 0.0, "client.nesterov": "false", "client.weight_decay": 0.0,
        "privacy.mode": "example", "privacy.epsilon": epsilon, "privacy.delta": DELTA,
        "privacy.clip_norm": CLIP,
    }  # fmt: skip
    sets = tuple(f"{key}={value}" for key, value in settings.items())
    return resolve(read_experiment(DIGITS, sets))


def ours(seed: int, epsilon: float, method: str) -> tuple[float, float]:
    """Return accuracy and noise multiplier of this package."""
    resolved = experiment(seed, epsilon, method)
    chosen = resolved.experiment
    data = load_run_data(resolved)
    client = {f"client.{k}": v for k, v in chosen.client.model_dump(exclude_none=True).items()}
    result = simulate(
        build_tuned(resolved, data.num_labels),
        data,
        {
            "seed": seed,
            "federation.rounds": 1,
            "federation.clients_per_round": 1,
            "engine.workers": 1,
            **client,
        },
        privacy={
            "mode": "example",
            "epsilon": epsilon,
            "delta": DELTA,
            "clip_norm": CLIP,
            "noise_multiplier": chosen.privacy.noise_multiplier,
        },
    )
    noise = chosen.privacy.noise_multiplier
    assert noise is not None
    return float(result.records[-1]["metrics"]["accuracy"]), noise


def theirs(seed: int, epsilon: float, method: str) -> tuple[float, float]:
    """Return accuracy and noise multiplier of opacus with its PRV accountant."""
    from opacus import GradSampleModule
    from opacus.accountants.utils import get_noise_multiplier
    from opacus.optimizers import DPOptimizer

    resolved = experiment(seed, epsilon, method)
    data = load_run_data(resolved)
    tuned = build_tuned(resolved, data.num_labels)
    total, rate = len(data.train), BATCH / len(data.train)
    steps = EPOCHS * -(-total // BATCH)
    noise = get_noise_multiplier(
        target_epsilon=epsilon, target_delta=DELTA, sample_rate=rate, steps=steps, accountant="prv"
    )
    everything = data.train.batch(range(total), seed=None)
    model = GradSampleModule(tuned.model, strict=False).train()
    generator = torch.Generator().manual_seed(seed)
    optimizer = DPOptimizer(
        torch.optim.SGD(list(tuned.parameters.values()), lr=LR),
        noise_multiplier=noise,
        max_grad_norm=CLIP,
        expected_batch_size=BATCH,
        generator=generator,
    )
    for _ in range(steps):
        rows = torch.nonzero(torch.rand(total, generator=generator) < rate).flatten()
        optimizer.zero_grad()
        logits = model(pixel_values=everything["pixel_values"][rows]).logits
        torch.nn.functional.cross_entropy(logits, everything["labels"][rows]).backward()
        optimizer.step()
    tuned.model.eval()
    test = data.test.batch(range(len(data.test)), seed=None)
    with torch.no_grad():
        logits = tuned.model(pixel_values=test["pixel_values"]).logits
    accuracy = float((logits.argmax(-1) == test["labels"]).float().mean())
    return accuracy, float(noise)


if __name__ == "__main__":
    main()
