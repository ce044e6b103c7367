"""Laws of the local engine: memories exactly once, workers that die, nothing left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import support
import torch

from fedpeft.core.errors import EngineError
from fedpeft.engines.local import block_size
from fedpeft.engines.workers import Died, WorkerPool
from fedpeft.rounds.round import run_round
from fedpeft.tuning.tuned import read_buffers, read_delta

TOP_K = support.STAGES["top_k"]


def start(plan):
    model = support.tuned()
    return plan.algorithm.init(read_delta(model), read_buffers(model))


@pytest.mark.parametrize("num_workers", [1, 2])
def test_a_round_that_was_not_committed_can_be_repeated(num_workers):
    """Kill between reply and commit, then resume: same delta, same memories."""
    plan = support.plan(up=TOP_K)
    straight = support.engine(support.federated(), up=TOP_K, num_workers=num_workers)
    state = start(plan)
    for _ in range(4):
        state, _ = run_round(state, plan, straight)
    expected = straight.memories(state.committed)
    straight.close()

    engine = support.engine(support.federated(), up=TOP_K)
    resumed = start(plan)
    for _ in range(2):
        resumed, _ = run_round(resumed, plan, engine)
    saved = engine.memories(resumed.committed)
    run_round(resumed, plan, engine)  # replies came, the server never committed
    engine = support.engine(support.federated(), up=TOP_K)
    engine.restore(saved, resumed.committed)
    for _ in range(2):
        resumed, _ = run_round(resumed, plan, engine)
    again = engine.memories(resumed.committed)
    assert torch.equal(resumed.delta, state.delta)
    assert again.keys() == expected.keys() and len(again) > 4
    assert all(torch.equal(again[name], expected[name]) for name in again)


def test_a_repeated_round_in_one_process_starts_from_the_committed_memory():
    plan, engine = support.plan(up=TOP_K), support.engine(support.federated(), up=TOP_K)
    state, _ = run_round(start(plan), plan, engine)
    first, _ = run_round(state, plan, engine)
    second, _ = run_round(state, plan, engine)
    assert torch.equal(first.delta, second.delta)


def test_losing_memories_changes_the_run():
    """The negative control: memories matter."""
    plan, engine = support.plan(up=TOP_K, cohort=6), support.engine(support.federated(), up=TOP_K)
    state, _ = run_round(start(plan), plan, engine)
    kept, _ = run_round(state, plan, engine)
    fresh = support.engine(support.federated(), up=TOP_K)
    lost, _ = run_round(state, plan, fresh)
    assert not torch.equal(kept.delta, lost.delta)


def test_a_block_is_smaller_for_a_large_delta():
    assert block_size(4 * 179_812, 2) == 64
    assert block_size(344_000_000, 2) == 2


def die_or_double(item):
    if item == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return 2 * item


def test_a_worker_that_dies_costs_its_item_only():
    pool = WorkerPool(die_or_double, 2)
    try:
        answers = dict(pool.map([1, 2, 3, 4, 5, 6]))
        assert dict(pool.map([7, 8])) == {7: 14, 8: 16}
    finally:
        pool.close()
    assert answers.pop(3) == Died(-signal.SIGKILL)
    assert answers == {1: 2, 2: 4, 4: 8, 5: 10, 6: 12}


def hold_and_free(item):
    """Fill and free 120 MB in small pieces, all but the last: the allocator keeps what is below."""
    pieces = [bytearray(60_000) for _ in range(2000)]
    kept.append(pieces.pop())
    pieces.clear()
    return psutil.Process().memory_info().rss


kept: list[bytearray] = []


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_a_worker_without_work_gives_memory_back():
    pool = WorkerPool(hold_and_free, 1)
    try:
        ((_, busy),) = pool.map([1])  # the negative control: freed, and still there
        process, deadline = psutil.Process(pool._workers[0].process.pid), time.monotonic() + 10
        while busy - process.memory_info().rss < 90e6 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert busy - process.memory_info().rss > 90e6
    finally:
        pool.close()


def test_close_leaves_no_process():
    before = set(psutil.Process().children())
    pool = WorkerPool(die_or_double, 2)
    list(pool.map([1, 2]))
    assert len(set(psutil.Process().children()) - before) == 2
    pool.close()
    assert not set(psutil.Process().children()) - before


def test_workers_end_when_their_parent_is_killed():
    script = Path(__file__).with_name("orphans.py")
    parent = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pids = [int(pid) for pid in parent.stdout.readline().split()]
    parent.kill()
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 20
    while any(alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert len(pids) == 2 and not any(alive(pid) for pid in pids)


def alive(pid):
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_workers_that_cannot_start_are_an_engine_error(monkeypatch):
    def refuse(*_):
        raise OSError("no more processes")

    monkeypatch.setattr(WorkerPool, "_start", refuse)
    with pytest.raises(EngineError, match="2 worker processes cannot be started: no more"):
        support.engine(support.federated(), num_workers=2)


@pytest.mark.slow
def test_spawned_workers_give_the_same_run(monkeypatch):
    """What macOS and Windows do: the client half and the data travel to fresh processes."""
    plan = support.plan(up=TOP_K)
    forked = support.engine(support.federated(), up=TOP_K, num_workers=2)
    expected, _ = run_round(start(plan), plan, forked)
    forked.close()
    monkeypatch.setattr("fedpeft.engines.workers.sys.platform", "darwin")
    spawned = support.engine(support.federated(), up=TOP_K, num_workers=2)
    state, record = run_round(start(plan), plan, spawned)
    spawned.close()
    assert not record.failures and torch.equal(state.delta, expected.delta)
