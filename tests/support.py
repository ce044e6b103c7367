"""A model and data of a few dozen numbers, for laws about rounds and engines; a tiny experiment."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from fedpeft.client.local import LocalSettings, local_trainer
from fedpeft.client.optimizers import OptimizerSettings
from fedpeft.core.deltas import DeltaSpec
from fedpeft.data.examples import Federated
from fedpeft.engines.local import LocalEngine
from fedpeft.models.families import PLAIN
from fedpeft.models.loaded import LoadedModel
from fedpeft.models.tasks import Batch, Scores, Task
from fedpeft.rounds.client_half import ClientHalf
from fedpeft.rounds.round_plan import RoundPlan
from fedpeft.server.algorithms import fedavg
from fedpeft.server.sampling import fixed_cohort, sampler_of
from fedpeft.server.state import Algorithm
from fedpeft.tuning.dropout import DropoutKeys, KeyedDropout
from fedpeft.tuning.tuned import TunedModel
from fedpeft.wire import stages
from fedpeft.wire.stages import Stage

STAGES = {
    "none": (),
    "float16": (stages.float16(),),
    "int8": (stages.int8(chunk=8),),
    "top_k": (stages.top_k(0.3),),
    "top_k+int8": (stages.top_k(0.5), stages.int8(chunk=8)),
}
TINY = """
[model]
name = "preset:tiny-vit"
[data.partition]
clients = 6
alpha = 1.0
[federation]
rounds = 2
clients_per_round = 2
[client]
epochs = 1
[engine]
workers = 1
"""
"""An experiment file of two rounds that take a fifth of a second."""


class Net(nn.Module):
    """Two layers with keyed dropout between them, and optionally BatchNorm."""

    def __init__(self, keys: DropoutKeys, *, norm: bool = False, dropout: float = 0.2) -> None:
        super().__init__()
        self.low = nn.Linear(5, 7)
        self.norm = nn.BatchNorm1d(7) if norm else nn.Identity()
        self.drop = KeyedDropout(dropout, keys, "net")
        self.head = nn.Linear(7, 3)
        self.unused = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.drop(torch.tanh(self.norm(self.low(x)))))


def score(model: nn.Module, batch: Batch) -> Scores:
    logits = model(batch["x"])
    labels = batch["labels"]
    losses = nn.functional.cross_entropy(logits, labels, reduction="none")
    return Scores(losses, torch.ones_like(losses), (logits.argmax(-1) == labels).float())


@dataclass(frozen=True)
class Points:
    """A table of points and labels."""

    x: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: Sequence[int], *, seed: int | None) -> Batch:
        index = torch.as_tensor(list(indices))
        return {"x": self.x[index], "labels": self.labels[index]}


def federated(num_clients: int = 6) -> Federated:
    generator = torch.Generator().manual_seed(0)
    sizes = [3 + 4 * i for i in range(num_clients)]
    x = torch.randn(sum(sizes), 5, generator=generator)
    labels = (x @ torch.randn(5, 3, generator=generator)).argmax(1)
    cuts = np.split(np.arange(sum(sizes)), np.cumsum(sizes)[:-1])
    clients = {f"client-{i}": rows for i, rows in enumerate(cuts)}
    points = Points(x, labels)
    return Federated(points, points, clients, 3, None, labels.numpy(), "points", {})


def tuned(*, norm: bool = False, dropout: float = 0.2, seed: int = 3) -> TunedModel:
    keys = DropoutKeys()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Net(keys, norm=norm, dropout=dropout)
    parameters = dict(sorted(model.named_parameters()))
    buffers = {n: b for n, b in sorted(model.named_buffers()) if b.is_floating_point()}
    loaded = LoadedModel(model, Task("points", score), PLAIN, ("head",), None, "net")
    return TunedModel(
        model, loaded, "full", {}, DeltaSpec.of(parameters), parameters,
        DeltaSpec.of(buffers), buffers, trains_statistics=norm, dropout=keys,
    )  # fmt: skip


def settings(**changes: object) -> LocalSettings:
    chosen = {"epochs": 2, "batch_size": 4, "optimizer": OptimizerSettings(lr=0.1), **changes}
    return LocalSettings(**chosen)  # type: ignore[arg-type]


def make_half(up: str, chosen: LocalSettings, norm: bool) -> ClientHalf:
    """Build a client half from names and values only, so that it can travel to a fresh process."""
    model = tuned(norm=norm)
    return ClientHalf(local_trainer(model, chosen), STAGES[up], (), model.spec)


def engine(
    data: Federated,
    *,
    up: Sequence[Stage] = (),
    num_workers: int = 1,
    block: int = 64,
    norm: bool = False,
    chosen: LocalSettings | None = None,
) -> LocalEngine:
    name = next(name for name, chain in STAGES.items() if chain == tuple(up))
    half = functools.partial(make_half, name, chosen or settings(), norm)
    return LocalEngine(half, data, num_workers=num_workers, block=block)


def plan(
    *, algorithm: Algorithm | None = None, up: Sequence[Stage] = (), cohort: int = 4,
    norm: bool = False, seed: int = 1,
) -> RoundPlan:  # fmt: skip
    model = tuned(norm=norm)
    return RoundPlan(
        algorithm or fedavg(),
        sampler_of(lambda clients, number: fixed_cohort(clients, cohort, seed=seed, round=number)),
        model.spec, model.buffer_spec, seed, float(cohort), up=up,
    )  # fmt: skip
