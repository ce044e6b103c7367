"""A model with one large frozen layer and a small head, for laws about memory."""

from __future__ import annotations

import functools

import support
import torch
from torch import Tensor, nn

from fedpeft.client.local import local_trainer
from fedpeft.core.deltas import DeltaSpec
from fedpeft.engines.local import LocalEngine
from fedpeft.models.families import PLAIN
from fedpeft.models.loaded import LoadedModel
from fedpeft.models.tasks import Task
from fedpeft.rounds.client_half import ClientHalf
from fedpeft.rounds.round_plan import RoundPlan
from fedpeft.server.algorithms import fedavg
from fedpeft.server.sampling import fixed_cohort, sampler_of
from fedpeft.tuning.tuned import TunedModel


class Wide(nn.Module):
    """Points to `width` numbers, mixed, and back, all frozen; a head on five of them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up = nn.Linear(5, width)
        self.mix = nn.Linear(width, width)
        self.down = nn.Linear(width, 5)
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.down(self.mix(torch.tanh(self.up(x)))))


def model(width: int) -> TunedModel:
    """Build the model; only its head trains."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        built = Wide(width)
    for frozen in (built.up, built.mix, built.down):
        frozen.requires_grad_(False)
    trained = {"head.bias": built.head.bias, "head.weight": built.head.weight}
    loaded = LoadedModel(built, Task("points", support.score), PLAIN, ("head",), None, "wide")
    none = DeltaSpec.of({})
    return TunedModel(built, loaded, "head", {}, DeltaSpec.of(trained), trained, none, {})


def make_half(tuned: TunedModel, copied: bool) -> ClientHalf:
    """Build a worker's half; `copied` gives it a backbone of its own."""
    if copied:
        for parameter in tuned.model.parameters():
            parameter.data = parameter.data.clone()
    return ClientHalf(local_trainer(tuned, support.settings()), (), (), tuned.spec)


def engine(tuned: TunedModel, num_workers: int, *, copied: bool = False) -> LocalEngine:
    """Start workers over one model."""
    half = functools.partial(make_half, tuned, copied)
    return LocalEngine(half, support.federated(), num_workers=num_workers)


def plan(tuned: TunedModel, cohort: int = 6) -> RoundPlan:
    """Return the plan of a run of all clients."""
    return RoundPlan(
        fedavg(),
        sampler_of(lambda clients, number: fixed_cohort(clients, cohort, seed=1, round=number)),
        tuned.spec, tuned.buffer_spec, 1, float(cohort),
    )  # fmt: skip
