"""A tiny model and federation, on which whole rounds take milliseconds."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from fedpeft.client.local import local_trainer
from fedpeft.client.optimizers import OptimizerSettings
from fedpeft.client.settings import LocalSettings
from fedpeft.core import seeds
from fedpeft.core.deltas import DeltaSpec
from fedpeft.data.examples import Federated
from fedpeft.engines.local import LocalEngine
from fedpeft.models.families import PLAIN
from fedpeft.models.loaded import LoadedModel
from fedpeft.models.tasks import Batch, Scores, Task
from fedpeft.rounds.client_half import ClientHalf
from fedpeft.rounds.job import Engine, Failure, Job, Reply
from fedpeft.rounds.round import run_round
from fedpeft.rounds.round_plan import RoundPlan, RoundRecord
from fedpeft.server.algorithms import fedavg
from fedpeft.server.sampling import fixed
from fedpeft.server.state import Algorithm, ServerState
from fedpeft.tuning.dropout import DropoutKeys, KeyedDropout
from fedpeft.tuning.tuned import TunedModel, read_buffers, read_delta
from fedpeft.wire.stages import Stage


class _Net(nn.Module):
    """Two layers with keyed dropout between them, and optionally BatchNorm."""

    def __init__(self, keys: DropoutKeys, *, norm: bool = False, dropout: float = 0.2) -> None:
        super().__init__()
        self.low = nn.Linear(5, 7)
        self.norm = nn.BatchNorm1d(7) if norm else nn.Identity()
        self.drop = KeyedDropout(dropout, keys, "net")
        self.head = nn.Linear(7, 3)
        self.unused = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits [B, 3] of points [B, 5]."""
        logits: Tensor = self.head(self.drop(torch.tanh(self.norm(self.low(x)))))
        return logits


def score(model: nn.Module, batch: Batch) -> Scores:
    """Score logits of points by cross-entropy."""
    logits, labels = model(batch["x"]), batch["labels"]
    losses = nn.functional.cross_entropy(logits, labels, reduction="none")
    return Scores(losses, torch.ones_like(losses), (logits.argmax(-1) == labels).float())


@dataclass(frozen=True)
class Points:
    """A table of points and labels.

    Attributes:
      x: the points, [N, 5].
      labels: class of each point, int64 [N].
    """

    x: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: Sequence[int], *, seed: int | None) -> Batch:
        """Return the points and labels of some rows."""
        index = torch.as_tensor(list(indices))
        return {"x": self.x[index], "labels": self.labels[index]}


def make_data(num_clients: int = 6) -> Federated:
    """Make clients with 3, 7, 11, ... points, labelled by a linear rule."""
    generator = torch.Generator().manual_seed(0)
    sizes = [3 + 4 * i for i in range(num_clients)]
    x = torch.randn(sum(sizes), 5, generator=generator)
    labels = (x @ torch.randn(5, 3, generator=generator)).argmax(1)
    cuts = np.split(np.arange(sum(sizes)), np.cumsum(sizes)[:-1])
    clients = {f"client-{i}": rows for i, rows in enumerate(cuts)}
    points = Points(x, labels)
    return Federated(points, points, clients, 3, None, labels.numpy(), "points", {})


def make_tuned(*, norm: bool = False, dropout: float = 0.2, seed: int = 3) -> TunedModel:
    """Make the model; all of its parameters are trained."""
    keys = DropoutKeys()
    with seeds.isolated(seed):
        model = _Net(keys, norm=norm, dropout=dropout)
    parameters = dict(sorted(model.named_parameters()))
    buffers = {n: b for n, b in sorted(model.named_buffers()) if b.is_floating_point()}
    loaded = LoadedModel(model, Task("points", score), PLAIN, ("head",), None, "net")
    return TunedModel(
        model,
        loaded,
        "full",
        {},
        DeltaSpec.of(parameters),
        parameters,
        DeltaSpec.of(buffers),
        buffers,
        trains_statistics=norm,
        dropout=keys,
    )


def make_settings(**changes: object) -> LocalSettings:
    """Return two epochs of SGD with batches of 4, with changes."""
    chosen = {"epochs": 2, "batch_size": 4, "optimizer": OptimizerSettings(lr=0.1), **changes}
    return LocalSettings(**chosen)  # type: ignore[arg-type]  # the caller's own settings


def make_half(
    up: Sequence[Stage] = (), settings: LocalSettings | None = None, *, norm: bool = False
) -> ClientHalf:
    """Build the client half of the tiny model."""
    model = make_tuned(norm=norm)
    trainer = local_trainer(model, settings or make_settings())
    return ClientHalf(trainer, up, (), model.spec, buffer_spec=model.buffer_spec)


def make_engine(
    data: Federated, up: Sequence[Stage] = (), *, num_workers: int = 1, block: int = 64
) -> LocalEngine:
    """Start a local engine for the clients of `make_data`."""
    half = functools.partial(make_half, tuple(up))
    return LocalEngine(half, data, num_workers=num_workers, block=block)


def make_plan(
    algorithm: Algorithm | None = None,
    up: Sequence[Stage] = (),
    *,
    cohort: int = 4,
    norm: bool = False,
    seed: int = 1,
) -> RoundPlan:
    """Make a plan of rounds with `cohort` clients each."""
    model = make_tuned(norm=norm)
    return RoundPlan(
        algorithm or fedavg(), fixed(), model.spec, model.buffer_spec, seed, float(cohort), up=up
    )


@dataclass(frozen=True)
class _Changed:
    """An engine that passes the answers to each job through a function."""

    engine: Engine
    change: Callable[[list[Reply | Failure]], Iterable[Reply | Failure]]

    def clients(self) -> Sequence[str]:
        return self.engine.clients()

    def run(self, job: Job) -> Iterator[Reply | Failure]:
        return iter(self.change(list(self.engine.run(job))))


def run_rounds(
    plan: RoundPlan,
    engine: Engine,
    rounds: int = 3,
    *,
    state: ServerState | None = None,
    change: Callable[[list[Reply | Failure]], Iterable[Reply | Failure]] = lambda answers: answers,
) -> tuple[ServerState, list[RoundRecord]]:
    """Run some rounds.

    Args:
      plan: the plan of the rounds.
      engine: the engine that runs the clients.
      rounds: number of rounds.
      state: state to start from; None: the one before round 1.
      change: function that is applied to a round's answers before the server gets them.
    """
    model = make_tuned()
    now = state or plan.algorithm.init(read_delta(model), read_buffers(model))
    records = []
    for _ in range(rounds):
        now, record = run_round(now, plan, _Changed(engine, change))
        records.append(record)
    return now, records


def same_state(one: ServerState, two: ServerState) -> bool:
    """Return whether two states are equal, bit for bit."""
    return (
        torch.equal(one.delta, two.delta)
        and torch.equal(one.buffers, two.buffers)
        and same_tensors(one.memory, two.memory)
    )


def same_tensors(one: Mapping[str, Tensor], two: Mapping[str, Tensor]) -> bool:
    """Return whether two memories hold equal tensors under the same names."""
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def check_rounds(plan: RoundPlan, *, where: str) -> None:
    """Check that the order of replies changes nothing, and that a run can resume.

    Args:
      plan: the plan of the rounds.
      where: start of a message, such as the name of a stage.

    Raises:
      AssertionError: if one of the laws does not hold.
    """
    data = make_data()
    straight, _ = run_rounds(plan, make_engine(data, plan.up))
    backwards, _ = run_rounds(
        plan, make_engine(data, plan.up, block=2), change=lambda answers: answers[::-1]
    )
    assert same_state(straight, backwards), f"{where}: the order of replies changes a run"
    engine, fresh = make_engine(data, plan.up), make_engine(data, plan.up)
    halfway, _ = run_rounds(plan, engine, 1)
    fresh.restore(engine.memories(halfway.committed), halfway.committed)
    resumed, _ = run_rounds(plan, fresh, 2, state=halfway)
    assert same_state(straight, resumed), f"{where}: a run that resumes differs from one in one go"
