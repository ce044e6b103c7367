"""Nothing that is not finite is committed, and the error names the side that made it."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from fedpeft.core.errors import NotFiniteError
from fedpeft.server import algorithms
from fedpeft.server.state import Update
from fedpeft.testing import world
from fedpeft.wire.stages import Stage

INFINITE = float("inf")


def rounds(algorithm=None, up=(), count=1):
    plan = world.make_plan(algorithm, up)
    return world.run_rounds(plan, world.make_engine(world.make_data()), count)


@pytest.mark.parametrize("algorithm", [
    algorithms.fedavg(lr=1e300), algorithms.fedavg(lr=1e25), algorithms.fedavgm(lr=1e38),
    algorithms.fedadam(lr=1e300), algorithms.fedadagrad(lr=1e38, tau=1e-30),
    algorithms.fedyogi(lr=1e40),
])  # fmt: skip
def test_a_server_step_that_overflows_is_the_servers_error(algorithm):
    with pytest.raises(NotFiniteError, match=r"round 1: the server's step.*federation.options"):
        rounds(algorithm)


def test_a_memory_that_is_not_finite_is_found_though_the_delta_is():
    plain = algorithms.fedavg()

    def apply(state, update):
        return dataclasses.replace(plain.apply(state, update), memory={"m": torch.tensor(INFINITE)})

    with pytest.raises(NotFiniteError, match="the server's step"):
        rounds(dataclasses.replace(plain, apply=apply))


def test_a_stage_that_overflows_is_named():
    def finish(update, memory, context):
        return dataclasses.replace(update, delta=update.delta / 0), memory

    stage = Stage("wild", finish=finish, keeps_shapes=True)
    with pytest.raises(NotFiniteError, match=r"stages \(wild\) made an update that is not finite"):
        rounds(up=(stage,))


def test_a_rule_that_overflows_is_named():
    def combine(updates, context):
        (first, *_) = list(updates)
        return Update(first.payload["delta"] * INFINITE, torch.empty(0), 1.0)

    with pytest.raises(NotFiniteError, match=r"federation.algorithm made a combined update"):
        rounds(dataclasses.replace(algorithms.fedavg(), combine=combine))


def test_the_last_good_state_is_named():
    """The step overflows in round 2 only."""
    plain = algorithms.fedavg()

    def apply(state, update):
        after = plain.apply(state, update)
        return dataclasses.replace(after, delta=after.delta * 1e30) if after.round == 2 else after

    with pytest.raises(NotFiniteError, match=r"round 2: .*the last good state is that of round 1"):
        rounds(dataclasses.replace(plain, apply=apply), count=3)


def test_ordinary_rounds_pass():
    """The negative control."""
    assert rounds(count=2)[0].round == 2
