"""One backbone in memory: what a further worker adds does not grow with the frozen layers."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch
import wide

from fedpeft.rounds.round import run_round
from fedpeft.tuning.tuned import TunedModel, read_delta

WIDTH = 5000
BACKBONE = 4 * WIDTH**2  # bytes of the frozen layers, but for the small ones

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/PID/smaps_rollup")


def proportional(process: psutil.Process) -> int:
    """Return a process's share of the memory in use: a page of k processes counts 1/k."""
    lines = Path(f"/proc/{process.pid}/smaps_rollup").read_text("ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


def total(tuned: TunedModel, num_workers: int, *, copied: bool = False) -> int:
    """Return the memory of this process and its workers after a round."""
    plan = wide.plan(tuned)
    before = set(psutil.Process().children())
    engine = wide.engine(tuned, num_workers, copied=copied)
    try:
        state = plan.algorithm.init(read_delta(tuned), torch.empty(0))
        _, record = run_round(state, plan, engine)
        assert not record.failures
        workers = [p for p in psutil.Process().children() if p not in before]
        counted = [p for p in workers if "resource_tracker" not in " ".join(p.cmdline())]
        assert len(counted) == num_workers
        return sum(proportional(process) for process in [psutil.Process(), *counted])
    finally:
        engine.close()


def growths(*, copied: bool = False) -> Iterator[int]:
    """Yield what a third worker adds to the wide model beyond what it adds to a small one."""
    for _ in range(4):
        yield third_adds(WIDTH, copied=copied) - third_adds(10)


def third_adds(width: int, *, copied: bool = False) -> int:
    """Return what a third worker adds to two, over one model."""
    tuned = wide.model(width)
    total(tuned, 2, copied=copied)  # what this process allocates once and keeps
    two, three = (total(tuned, count, copied=copied) for count in (2, 3))
    return three - two


def test_a_further_worker_adds_no_backbone():
    """The system adds memory of its own now and then: the least of some tries counts."""
    assert any(grown < 0.1 * BACKBONE for grown in growths())


def test_a_worker_that_copies_adds_a_backbone():
    """The negative control."""
    assert any(grown > 0.9 * BACKBONE for grown in growths(copied=True))


@pytest.mark.slow
def test_spawned_workers_share_it_too(monkeypatch):
    monkeypatch.setattr("fedpeft.engines.workers.sys.platform", "darwin")
    assert any(grown < 0.1 * BACKBONE for grown in growths())
