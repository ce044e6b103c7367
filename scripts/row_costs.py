"""The time that a run will take, from one measured step of its kind.

    seconds = rounds * (cohort * epochs * (examples of a client / batch + 1/2) * step
                        + test pictures * score)

A kind is what decides how long a step takes: model, tuning method, batch, picture and, where
gradients of single examples are clipped, privacy. The half is for the last, smaller batch.
"""

from __future__ import annotations

import json
import resource
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from fedpeft.build.run import build_run
from fedpeft.experiment.experiment import Experiment
from fedpeft.experiment.resolve import resolve
from fedpeft.rounds.round import run_round
from paper_pictures import PaperSet

__all__ = ["Cost", "kind_of", "measure", "seconds_of"]

_BATCHES = 4


@dataclass(frozen=True)
class Cost:
    """What was measured of a kind of run: one client, the second of two rounds.

    Attributes:
      step: seconds of training on one batch.
      score: seconds of scoring one test picture.
      bytes_up: bytes of a reply, as encoded.
      bytes_down: bytes of a broadcast, as encoded.
      memory: largest memory: of the GPU if it is used, else of this process so far, in bytes.
    """

    step: float
    score: float
    bytes_up: int
    bytes_down: int
    memory: int


def kind_of(experiment: Experiment) -> str:
    """Return a text that is equal for experiments whose steps take equally long."""
    tuning = experiment.tuning.model_dump(mode="json", exclude={"head_init"})
    parts = (
        experiment.model.config or experiment.model.name,
        experiment.model.num_labels,
        tuning,
        experiment.client.batch_size,
        experiment.data.source,
        _noise_of_steps(experiment),
    )
    return json.dumps(parts, sort_keys=True)


def measure(experiment: Experiment, folder: Path) -> Cost:
    """Train one client for two rounds of a few batches, with random weights, and time the second.

    Args:
      experiment: of a kind; its model is built from `model.config`.
      folder: a data set of the experiment's format.
    """
    built = build_run(resolve(_small(experiment, folder)))
    gpu = experiment.engine.device.startswith("cuda")
    if gpu:
        torch.cuda.reset_peak_memory_stats()
    try:
        state, _ = run_round(built.start, built.plan, built.engine)
        built.evaluate(state)
        state, record = run_round(state, built.plan, built.engine)
        began = time.perf_counter()
        built.evaluate(state)
        scored = time.perf_counter() - began
    finally:
        built.engine.close()
    if record.failures:
        raise RuntimeError(f"the measured client failed: {record.failures}")
    return Cost(
        record.seconds / _BATCHES,
        scored / len(built.data.test),
        record.bytes_up,
        record.bytes_down,
        torch.cuda.max_memory_allocated() if gpu else _memory_of_process(),
    )


def seconds_of(experiment: Experiment, cost: Cost, data: PaperSet) -> float:
    """Return the seconds that a run will take, its start left out."""
    client, federation = experiment.client, experiment.federation
    examples = min(experiment.data.budget or data.sizes["train"], data.sizes["train"])
    batches = examples / experiment.data.partition.clients / client.batch_size + 0.5
    steps = federation.clients_per_round * client.epochs * batches
    scored = -(-federation.rounds // federation.eval_every) * data.sizes["test"]
    return federation.rounds * steps * cost.step + scored * cost.score


def _noise_of_steps(experiment: Experiment) -> str:
    """Return the mode of privacy where it changes a step: noise on a sum of clients does not."""
    privacy = experiment.privacy
    return privacy.mode if privacy.mode in ("example", "paper") else ""


def _small(experiment: Experiment, folder: Path) -> Experiment:
    """Return an experiment of the same kind of step: one client with a few batches."""
    tables: dict[str, Mapping[str, object]] = {
        "model": {"name": experiment.model.config or experiment.model.name},
        "data": {
            "source": str(folder),
            "budget": _BATCHES * experiment.client.batch_size,
            "evaluate_on": "test",
            "partition": {"scheme": "iid", "clients": 1, "min_examples": 1},
        },
        "federation": {"clients_per_round": 1, "sampling": "fixed", "rounds": 2},
        "client": {"epochs": 1},
        "engine": {"workers": 1},
    }
    mode = _noise_of_steps(experiment)
    if mode == "example":
        tables["privacy"] = {"epsilon": None, "noise_multiplier": 1.0}
    elif not mode:
        tables["privacy"] = {"mode": "none", "epsilon": None}
    return experiment.changed(**tables)


def _memory_of_process() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
