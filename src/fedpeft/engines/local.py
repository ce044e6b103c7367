"""The local engine: all clients run on this machine, in worker processes or in this process.

    cohort ──passes──> blocks of consecutive passes ──> longest first ──> workers ──> replies,
                                                                                   in any order

Clients of a cohort are independent, and a turn is a pure function of its job, its client and that
client's memory: neither the number of workers nor the size of a block changes a result. The cohort
alone decides which clients share a pass: neighbours that start from the same broadcast.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
from torch import Tensor

from fedpeft.client.evaluate import Evaluation
from fedpeft.client.turns import ClientTurn, Memory
from fedpeft.core.errors import EngineError, FedpeftError
from fedpeft.data.drawn import Sizes, names_of
from fedpeft.data.examples import ClientData, Federated
from fedpeft.engines.memories import Memories
from fedpeft.engines.scoring import Scorer, score_all
from fedpeft.engines.workers import Died, WorkerPool, one_thread
from fedpeft.rounds.client_half import ClientHalf, run_turns
from fedpeft.rounds.job import Failure, Job, Reply
from fedpeft.rounds.round_plan import turn_seed

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


_Pass: TypeAlias = "tuple[_Item, ...]"
_Answers: TypeAlias = "tuple[_Answer, ...]"

_FAULTS = (FedpeftError, ValueError, LookupError, RuntimeError, OSError, MemoryError)
"""Errors that count as a failure of the client instead of ending the run."""


def passes_of(job: Job, clients_per_pass: int) -> list[tuple[str, ...]]:
    """Divide a cohort into passes: neighbours that start from the same broadcast train together.

    Args:
      job: the job, with its cohort and the broadcasts.
      clients_per_pass: largest number of clients in a pass, >= 1.
    """
    passes: list[tuple[str, ...]] = []
    for client in job.cohort:
        last = passes[-1] if passes else ()
        room = last and len(last) < clients_per_pass
        if room and job.broadcast[last[0]] == job.broadcast[client]:
            passes[-1] = (*last, client)
        else:
            passes.append((client,))
    return passes


def block_size(num_bytes: int, num_workers: int) -> int:
    """Return the number of turns in a block, for an update of `num_bytes` bytes."""
    return max(num_workers, min(64, _BLOCK_BYTES // max(num_bytes, 1)))


class LocalEngine:
    """Runs the clients of a federated data set on this machine.

    Args:
      make_half: builds the client half; called once in every worker (after the fork), so that each
        worker has trainable parameters of its own and all share the frozen ones.
      data: the federated data set.
      num_workers: number of processes; 1 means this process.
      block: number of turns that are distributed to the workers together.
      clients_per_pass: largest number of turns that a worker computes together, where they start
        from the same broadcast.
      scorer: scorer of the server's test set, for `evaluate`; its model must be the one that
        `make_half` gives to its trainer.

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
        clients_per_pass: int = 1,
        scorer: Scorer | None = None,
    ) -> None:
        self._names = names_of(data.clients)
        self._sizes = Sizes(data.clients)
        self._memories = Memories()
        self._block = block
        self._num_workers = num_workers
        self._clients_per_pass = clients_per_pass
        self._scorer = scorer
        self._board = _board(scorer) if scorer and num_workers > 1 else ()
        self._work = _Work(make_half, data, scorer, self._board)
        self._pool = _start(self._work, num_workers) if num_workers > 1 else None

    def clients(self) -> Sequence[str]:
        """Return the names of all clients."""
        return self._names

    def run(self, job: Job) -> Iterator[Reply | Failure]:
        """Train the cohort, block by block."""
        passes = passes_of(job, self._clients_per_pass)
        block_passes = max(1, self._block // self._clients_per_pass)
        if self._clients_per_pass > 1:
            block_passes = max(self._num_workers, block_passes)
        for start in range(0, len(passes), block_passes):
            block = passes[start : start + block_passes]
            longest_first = sorted(block, key=self._num_examples, reverse=True)
            items = [tuple(self._item(job, name) for name in names) for names in longest_first]
            for item, answer in self._map(items):
                if isinstance(answer.reply, Reply) and answer.memory:
                    committed = job.committed[item.client]
                    self._memories.keep(
                        item.client, answer.memory, committed=committed, turn=item.round
                    )
                yield answer.reply

    def evaluate(self, delta: Tensor, buffers: Tensor) -> Evaluation:
        """Score the server's whole test set on all workers; their number changes no result.

        Args:
          delta: flat, float32 [P].
          buffers: the buffers that are sent, flat; of length 0 where there are none.

        Raises:
          EngineError: if the engine was made without a scorer.
        """
        scorer = self._scorer
        if scorer is None or self._pool is None:
            return score_all(scorer, delta, buffers)
        for place, value in zip(self._board, (delta, buffers), strict=True):
            place.copy_(value)
        found: dict[int, Evaluation] = {}
        for rows, scores in self._pool.map(scorer.spans()):
            assert isinstance(rows, range)
            if not isinstance(scores, Evaluation):  # its worker died: an error shows here
                logger.warning("evaluation of rows %d to %d: %s", rows[0], rows[-1], scores)
                with one_thread():
                    scorer.load(delta, buffers)
                    scores = scorer.score(rows)
            found[rows.start] = scores
        return Evaluation.join([found[start] for start in sorted(found)])

    def memories(self, committed: Mapping[str, int]) -> dict[str, Tensor]:
        """Return all committed memories as named tensors, for a checkpoint."""
        return self._memories.dump(committed)

    def restore(self, memories: Mapping[str, Tensor], committed: Mapping[str, int]) -> None:
        """Take back what `memories` gave."""
        self._memories.load(memories, committed)

    def close(self) -> None:
        """End the workers."""
        if self._pool is not None:
            self._pool.close()

    def _num_examples(self, names: Sequence[str]) -> int:
        return sum(self._sizes[name] for name in names)

    def _item(self, job: Job, client: str) -> _Item:
        memory = self._memories.get(client, job.committed[client])
        number = job.turns.get(client, job.round)
        seed = turn_seed(job.seed, number, client)
        version = job.versions.get(client, job.round - 1)
        return _Item(number, client, job.broadcast[client], memory, seed, version)

    def _map(self, passes: Sequence[_Pass]) -> Iterator[tuple[_Item, _Answer]]:
        if self._pool is None:
            with one_thread():
                for items in passes:
                    yield from zip(items, self._work.take(items), strict=True)
            return
        for done, answers in self._pool.map(passes):
            assert not isinstance(done, range)
            assert not isinstance(answers, Evaluation)
            items = done
            if isinstance(answers, Died):
                reason = f"its worker process ended with exit code {answers.exit_code}"
                logger.warning("clients %s: %s", ", ".join(i.client for i in items), reason)
                answers = tuple(_Answer(Failure(item.client, reason)) for item in items)
            yield from zip(items, answers, strict=True)


def _board(scorer: Scorer) -> tuple[Tensor, ...]:
    """Return shared memory for a delta and its buffers, from which all workers evaluate."""
    tuned = scorer.tuned
    sizes = (tuned.spec.num_params, tuned.buffer_spec.num_params)
    return tuple(torch.zeros(n).share_memory_() for n in sizes)  # type: ignore[no-untyped-call]  # torch's


def _start(work: _Work, num_workers: int) -> WorkerPool[_Pass | range, _Answers | Evaluation]:
    try:
        return WorkerPool(work, num_workers)
    except OSError as error:
        raise EngineError(
            f"engine.workers: {num_workers} worker processes cannot be started: {error}. "
            "Lower engine.workers, or free memory and processes"
        ) from error


@dataclass(frozen=True)
class _Work:
    """The work of a worker: the turns of a pass, or the evaluation of some rows.

    Attributes:
      make_half: builds the client half of a process.
      data: the federated data set.
      scorer: scorer of the server's test set; None where nothing is evaluated.
      board: the shared delta and buffers to evaluate; see `_board`.
    """

    make_half: Callable[[], ClientHalf]
    data: Federated
    scorer: Scorer | None
    board: tuple[Tensor, ...]

    @functools.cached_property
    def half(self) -> ClientHalf:
        """The client half of this process, built at the first use."""
        return self.make_half()

    def __call__(self, items: _Pass | range) -> _Answers | Evaluation:
        if not isinstance(items, range):
            return self.take(items)
        _ = self.half  # built first: from then on the trainable parameters are this process's own
        assert self.scorer is not None
        delta, buffers = self.board
        self.scorer.load(delta, buffers)
        return self.scorer.score(items)

    def take(self, items: _Pass) -> _Answers:
        """Run the turns of a pass together; if that fails, run its clients one by one."""
        began = time.perf_counter()
        try:
            turns = [self._turn(item) for item in items]
            taken = run_turns(self.half, items[0].blob, turns)
        except _FAULTS as error:
            logger.debug("%s failed", ", ".join(item.client for item in items), exc_info=True)
            if len(items) > 1:
                return tuple(answer for item in items for answer in self.take((item,)))
            return (_Answer(Failure(items[0].client, f"{type(error).__name__}: {error}")),)
        seconds = (time.perf_counter() - began) / len(items)
        return tuple(
            _Answer(Reply(item.client, blob, seconds), memory)
            for item, (blob, memory) in zip(items, taken, strict=True)
        )

    def _turn(self, item: _Item) -> ClientTurn:
        data = ClientData(self.data.train, self.data.clients[item.client])
        return ClientTurn(item.round, item.client, data, item.memory, item.seed, item.version)
