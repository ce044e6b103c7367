"""A model and data of a few dozen numbers, for laws about rounds and engines; a tiny experiment."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from fedpeft.client.local import local_trainer
from fedpeft.client.settings import LocalSettings
from fedpeft.data.examples import Federated
from fedpeft.engines.local import LocalEngine
from fedpeft.rounds.client_half import ClientHalf
from fedpeft.rounds.round_plan import RoundPlan
from fedpeft.server.state import Algorithm
from fedpeft.testing import world
from fedpeft.wire import stages
from fedpeft.wire.stages import Stage

Points, score = world.Points, world.score
federated, settings, tuned = world.make_data, world.make_settings, world.make_tuned
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
    return world.make_plan(algorithm, up, cohort=cohort, norm=norm, seed=seed)
