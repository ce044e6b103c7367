"""Worker processes of the local engine: one thread each, over one backbone in shared memory.

    parent ──(turn order)──> worker ──(answer)──> parent

On Linux a worker is forked: it shares the parent's model and data without a copy and starts at
once. Elsewhere it is spawned, and torch passes tensors in shared memory. An idle worker returns
freed memory to the system. A worker ends when its parent is gone, even after SIGKILL.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Generic, TypeVar

import torch
import torch.multiprocessing

from fedpeft.core.interrupts import ignore_interrupts, interrupts_held

_IDLE = 0.05
"""Seconds without work after which a worker returns freed memory to the system."""

_PATIENCE = 2.0
"""Seconds that all workers together get to end by themselves; one that still starts is killed."""

In = TypeVar("In")
Out = TypeVar("Out")


@dataclass(frozen=True)
class Died:
    """The outcome of an item whose worker process ended while working on it."""

    exit_code: int | None


@dataclass
class _Worker(Generic[In]):
    process: torch.multiprocessing.Process
    pipe: Connection[object, object]
    item: In | None = None


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Compute with one torch thread inside the block: the last bits depend on their number."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class WorkerPool(Generic[In, Out]):
    """A pool of worker processes that apply one function to items.

    Args:
      work: item -> answer; runs in the workers, with one torch thread. What it changes is not
        shared: each worker has its own copy.
      num_workers: number of processes, >= 1.
    """

    def __init__(self, work: Callable[[In], Out], num_workers: int) -> None:
        method = "fork" if sys.platform == "linux" else "spawn"
        self._context = torch.multiprocessing.get_context(method)
        self._work = work
        self._workers: list[_Worker[In]] = []
        try:
            for place in range(num_workers):
                self._start(place)
        except BaseException:
            self.close()
            raise

    def map(self, items: Sequence[In]) -> Iterator[tuple[In, Out | Died]]:
        """Apply the function to all items, started in order; answers arrive in any order.

        If a worker dies, its item gets `Died` as the answer and the worker is replaced.
        """
        queue = list(reversed(items))
        for worker in self._workers:
            self._give(worker, queue)
        while busy := [worker for worker in self._workers if worker.item is not None]:
            ready = wait([worker.pipe for worker in busy])
            for worker in [w for w in busy if w.pipe in ready]:
                item, answer = self._take(worker)
                if isinstance(answer, Died):
                    worker = self._start(self._workers.index(worker))
                self._give(worker, queue)
                yield item, answer

    def close(self) -> None:
        """Stop the workers."""
        for worker in self._workers:
            worker.pipe.close()
        until = time.monotonic() + _PATIENCE
        for worker in self._workers:
            worker.process.join(timeout=max(0.0, until - time.monotonic()))
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()
        self._workers = []

    def _start(self, place: int) -> _Worker[In]:
        """Start a worker; it takes a place in the list before an interrupt can be raised."""
        with interrupts_held(self._context.get_start_method()):
            ours, theirs = self._context.Pipe()
            others = [worker.pipe for worker in self._workers]
            process = self._context.Process(  # type: ignore[attr-defined]  # every context has it
                target=_serve, args=(self._work, theirs, [ours, *others], os.getpid()), daemon=True
            )
            process.start()
            theirs.close()
            self._workers[place : place + 1] = [_Worker(process, ours)]
        return self._workers[place]

    def _give(self, worker: _Worker[In], queue: list[In]) -> None:
        worker.item = queue.pop() if queue else None
        if worker.item is not None:
            with contextlib.suppress(OSError):  # a dead worker is noticed when its answer is read
                worker.pipe.send(worker.item)

    def _take(self, worker: _Worker[In]) -> tuple[In, Out | Died]:
        item = worker.item
        assert item is not None
        try:
            return item, worker.pipe.recv()  # type: ignore[return-value]  # our own worker's answer
        except (EOFError, OSError):
            worker.process.join(timeout=5)
            return item, Died(worker.process.exitcode)


def _serve(
    work: Callable[[In], Out],
    pipe: Connection[object, object],
    foreign: Sequence[Connection[object, object]],
    parent: int,
) -> None:
    """Run the loop of a worker: receive an item, send its answer."""
    ignore_interrupts()
    if sys.platform == "linux":
        for other in foreign:
            other.close()
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    torch.set_num_threads(1)
    while True:
        try:
            if not pipe.poll(_IDLE):
                _return_memory()
            item = pipe.recv()
        except (EOFError, OSError):
            return
        answer = work(item)  # type: ignore[arg-type]  # the parent sends items only
        try:
            pipe.send(answer)
        except OSError:
            return  # the parent has closed the pool, or is gone


def _return_memory() -> None:
    """Return freed memory to the system, which glibc would keep for this process."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # another C library
            ctypes.CDLL("libc.so.6").malloc_trim(0)


def _end_with(parent: int) -> None:
    """End this process when its parent is gone."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)
