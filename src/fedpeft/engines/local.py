"""The local engine: all clients on this machine, in worker processes or in this one.

    cohort ──blocks of consecutive positions──> longest first ──> workers ──> replies, in any order

Clients of a cohort are independent, and a turn is a pure function of its job, its client and that
client's memory: neither the number of workers nor the size of a block changes a result.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fedpeft.client.turns import ClientTurn, Memory
from fedpeft.core.errors import EngineError, FedpeftError
from fedpeft.data.drawn import names_of
from fedpeft.data.examples import ClientData, Federated
from fedpeft.engines.workers import Crew, Died
from fedpeft.rounds.client_half import ClientHalf, run_turn
from fedpeft.rounds.job import Failure, Job, Reply
from fedpeft.rounds.round import turn_seed

__all__ = ["LocalEngine", "block_size"]

logger = logging.getLogger(__name__)

_BLOCK_BYTES = 256 * 2**20


@dataclass(frozen=True)
class _Item:
    round: int
    client: str
    blob: bytes
    memory: Memory
    seed: int
    version: int


@dataclass(frozen=True)
class _Answer:
    reply: Reply | Failure
    memory: Memory = field(default_factory=dict)


def block_size(num_bytes: int, num_workers: int) -> int:
    """Return how many turns are handed out together, by the bytes of one update."""
    return max(num_workers, min(64, _BLOCK_BYTES // max(num_bytes, 1)))


class LocalEngine:
    """Runs the clients of a federated data set on this machine.

    Args:
      make_half: builds the client half; called once in every worker (after the fork), so that each
        has trainable parameters of its own and all share the frozen ones.
      data: gives every client its examples.
      num_workers: processes; 1 means this process.
      block: turns that are handed out together.

    Raises:
      EngineError: if the processes cannot be started.
    """

    def __init__(
        self,
        make_half: Callable[[], ClientHalf],
        data: Federated,
        *,
        num_workers: int = 1,
        block: int = 64,
    ) -> None:
        self._names = names_of(data.clients)
        self._memories: dict[str, dict[int, Memory]] = {}
        self._block = block
        work = _Work(make_half, data)
        self._work = work
        self._crew: Crew[_Item, _Answer] | None = None
        if num_workers > 1:
            self._crew = _start(work, num_workers)

    def clients(self) -> Sequence[str]:
        """Return the names of all clients."""
        return self._names

    def run(self, job: Job) -> Iterator[Reply | Failure]:
        """Train the cohort, block by block."""
        for start in range(0, len(job.cohort), self._block):
            block = job.cohort[start : start + self._block]
            sizes = {name: len(self._work.data.clients[name]) for name in block}
            longest_first = sorted(block, key=lambda name: -sizes[name])
            for item, answer in self._map([self._item(job, name) for name in longest_first]):
                if isinstance(answer.reply, Reply) and answer.memory:
                    self._keep(item, job.committed[item.client], answer.memory)
                yield answer.reply

    def memories(self, committed: Mapping[str, int]) -> dict[str, Tensor]:
        """Return all committed memories as named tensors, for a checkpoint."""
        return {
            f"{client}\n{key}": tensor
            for client, kept in self._memories.items()
            for key, tensor in kept.get(committed.get(client, 0), {}).items()
        }

    def restore(self, memories: Mapping[str, Tensor], committed: Mapping[str, int]) -> None:
        """Take back what `memories` gave."""
        self._memories = {}
        for name, tensor in memories.items():
            client, key = name.split("\n", 1)
            kept = self._memories.setdefault(client, {}).setdefault(committed[client], {})
            self._memories[client][committed[client]] = {**kept, key: tensor}

    def close(self) -> None:
        """End the workers."""
        if self._crew is not None:
            self._crew.close()

    def _item(self, job: Job, client: str) -> _Item:
        memory = self._memories.get(client, {}).get(job.committed[client], {})
        number = job.turns.get(client, job.round)
        seed = turn_seed(job.seed, number, client)
        version = job.versions.get(client, job.round - 1)
        return _Item(number, client, job.broadcast[client], memory, seed, version)

    def _keep(self, item: _Item, committed: int, memory: Memory) -> None:
        """Keep the memory before and after the turn, until the server says which one counts."""
        before = self._memories.get(item.client, {}).get(committed)
        kept = {committed: before} if before is not None else {}
        self._memories[item.client] = {**kept, item.round: memory}

    def _map(self, items: Sequence[_Item]) -> Iterator[tuple[_Item, _Answer]]:
        if self._crew is None:
            with _one_thread():
                for item in items:
                    yield item, self._work(item)
            return
        for item, answer in self._crew.map(items):
            if isinstance(answer, Died):
                reason = f"its worker process ended with exit code {answer.exit_code}"
                logger.warning("client %s: %s", item.client, reason)
                answer = _Answer(Failure(item.client, reason))
            yield item, answer


def _start(work: _Work, num_workers: int) -> Crew[_Item, _Answer]:
    try:
        return Crew(work, num_workers)
    except OSError as error:
        raise EngineError(
            f"engine.workers: {num_workers} worker processes cannot be started: {error}. "
            "Lower engine.workers, or free memory and processes"
        ) from error


class _Work:
    """What a worker does with an item. Builds its client half at the first one."""

    def __init__(self, make_half: Callable[[], ClientHalf], data: Federated) -> None:
        self._make_half = make_half
        self.data = data
        self._half: ClientHalf | None = None

    def __call__(self, item: _Item) -> _Answer:
        began = time.perf_counter()
        try:
            if self._half is None:
                self._half = self._make_half()
            data = ClientData(self.data.train, self.data.clients[item.client])
            turn = ClientTurn(item.round, item.client, data, item.memory, item.seed, item.version)
            blob, memory = run_turn(self._half, item.blob, turn)
        except (FedpeftError, ValueError, RuntimeError, OSError, MemoryError) as error:
            logger.debug("client %s failed", item.client, exc_info=True)
            return _Answer(Failure(item.client, f"{type(error).__name__}: {error}"))
        return _Answer(Reply(item.client, blob, time.perf_counter() - began), memory)


class _one_thread:
    """Compute with one torch thread inside the block: thread counts differ in the last bits."""

    def __enter__(self) -> None:
        self._before = torch.get_num_threads()
        torch.set_num_threads(1)

    def __exit__(self, *_: object) -> None:
        torch.set_num_threads(self._before)
