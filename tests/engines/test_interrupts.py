"""Ctrl-C while workers start, or work: it reaches the run once, and no worker says a word."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import time

import psutil
import pytest

from fedpeft.core.interrupts import interrupts_held
from fedpeft.engines import workers
from fedpeft.engines.workers import WorkerPool

linux = pytest.mark.skipif(sys.platform != "linux", reason="workers are forked on Linux")


@pytest.fixture(autouse=True)
def usual_handler():
    """A test run in the background may have begun with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_an_interrupt_is_raised_where_the_block_ends(method):
    done = []
    with pytest.raises(KeyboardInterrupt):
        with interrupts_held(method):
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
            done.append("the block")
        done.append("after it")
    assert done == ["the block"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


def test_without_the_block_it_is_raised_at_once():
    """The negative control."""
    done = []
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
        done.append("next statement")
    assert done == []


def test_nothing_is_raised_where_nothing_came():
    with interrupts_held("fork"):
        pass
    with pytest.raises(ValueError, match="own"):
        with interrupts_held("fork"):
            raise ValueError("own")


def double(item):
    return 2 * item


def interrupting(fork):
    """Send what Ctrl-C sends, to parent and child, as soon as both exist."""

    def both() -> int:
        child = fork()
        if child:
            os.kill(child, signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        return child

    return both


@linux
def test_an_interrupt_while_workers_are_forked_ends_them_in_silence(monkeypatch, capfd):
    before = set(psutil.Process().children())
    monkeypatch.setattr(os, "fork", interrupting(os.fork))
    with pytest.raises(KeyboardInterrupt):
        WorkerPool(double, 2)
    assert not set(psutil.Process().children()) - before
    assert capfd.readouterr() == ("", "")


def interrupt_this_process():
    signal.raise_signal(signal.SIGINT)


@linux
@pytest.mark.parametrize("held", [True, False])
def test_a_child_that_starts_in_the_block_is_not_interrupted(held, capfd):
    """Without the block it dies with a traceback: the negative control of the silence."""
    process = multiprocessing.get_context("fork").Process(target=interrupt_this_process)
    with interrupts_held("fork") if held else contextlib.nullcontext():
        process.start()
    process.join()
    assert ("KeyboardInterrupt" in capfd.readouterr().err) == (not held)


def slowly(item):
    time.sleep(0.3)
    return item


@linux
def test_a_worker_whose_answer_nobody_reads_ends_in_silence(capfd, monkeypatch):
    monkeypatch.setattr(workers, "_PATIENCE", 60.0)
    pool = WorkerPool(slowly, 2)
    for worker in pool._workers:
        worker.pipe.send(1)
    time.sleep(0.1)
    processes = [worker.process for worker in pool._workers]
    pool.close()
    assert [process.exitcode for process in processes] == [0, 0]
    assert capfd.readouterr() == ("", "")


def forever(item):
    while True:
        time.sleep(0.01)


def recorded(waits, join):
    """Join a process, and note how long it may take."""

    def waiting(timeout=None):
        waits.append(timeout)
        join(timeout)

    return waiting


@linux
def test_workers_that_do_not_end_are_killed_together(monkeypatch):
    monkeypatch.setattr(workers, "_PATIENCE", 0.2)
    pool = WorkerPool(forever, 2)
    for worker in pool._workers:
        worker.pipe.send(1)
    waits = []
    for worker in pool._workers:
        monkeypatch.setattr(worker.process, "join", recorded(waits, worker.process.join))
    pool.close()
    first, second = [wait for wait in waits if wait is not None]
    assert 0 < first <= 0.2 and second < 0.1, "each was waited for by itself"
