"""Row 7: combining 1,000 replies of 0.2 M parameters against a sum over 256 MiB of memory.

A whole round of the server: a job is written, every reply is decoded, checked (shape, type, finite
numbers), measured (its norm) and added in cohort order. The clients' work is done beforehand.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from bench.figures import Report, check, figure
from bench.machine import others
from fedpeft.core.deltas import DeltaSpec
from fedpeft.rounds.job import Job, Reply
from fedpeft.rounds.round import run_round
from fedpeft.rounds.round_plan import RoundPlan
from fedpeft.server.algorithms import fedavg
from fedpeft.server.sampling import sampler_of
from fedpeft.wire import messages

__all__ = ["run"]


class Waiting:
    """An engine whose clients have answered already."""

    def __init__(self, replies: Sequence[Reply]) -> None:
        self._replies = replies

    def clients(self) -> Sequence[str]:
        """Return the names."""
        return tuple(reply.client for reply in self._replies)

    def run(self, job: Job) -> Iterator[Reply]:
        """Give the replies."""
        yield from self._replies


def run(small: bool) -> Report:
    """Measure whole rounds and sums in turn, with one thread."""
    torch.set_num_threads(1)
    count, size, repeats = (50, 20_000, 2) if small else (1000, 200_000, 15)
    memory = torch.ones((2**20 if small else 2**28) // 4)
    updates = [_update(number, size) for number in range(count)]
    engine = Waiting([_reply(number, update) for number, update in enumerate(updates)])
    algorithm = fedavg()
    spec = DeltaSpec(("w",), ((size,),))
    plan = RoundPlan(
        algorithm, sampler_of(lambda names, _: tuple(names)), spec, DeltaSpec((), ()), 1, count
    )
    start = algorithm.init(torch.zeros(size), torch.empty(0))
    busy, ratios, rounds, sums, bare = [others()], [], [], [], []
    state = run_round(start, plan, engine)[0]
    for _ in range(repeats):
        sums.append(_seconds_of_sum(memory))
        began = time.perf_counter()
        state, _ = run_round(start, plan, engine)
        rounds.append(time.perf_counter() - began)
        sum_rate = 4 * len(memory) / sums[-1]
        ratios.append(4 * size * count / rounds[-1] / sum_rate)
        bare.append(4 * size * count / _seconds_of_two_calls(updates) / sum_rate)
    busy.append(others())
    exact = torch.stack(updates).double().mean(0)
    error = float((state.delta.double() - exact).abs().max() / exact.abs().max())
    sides = {"round_seconds": rounds, "sum_seconds": sums, "update_bytes": 4 * size * count}
    name = f"{count} deltas of {size:,} parameters, one thread"
    return {
        "figures": [
            figure(name, ratios, target=0.7, sides=sides),
            figure("the two torch calls alone, vector_norm and add_", bare),
        ],
        "checks": [check("the mean of the updates", error < 1e-5, f"{error:.1e} off (< 1e-5)")],
        "notes": [
            "Each reply is read twice: once from memory for its norm, which also shows numbers "
            "that are not finite, and once from the cache to add it. What is left is some 15 "
            "calls of Python a reply."
        ],
        "busy": busy,
    }


def _update(number: int, size: int) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(number)) * 1e-3


def _reply(number: int, update: Tensor) -> Reply:
    notes = {"weight": "+1.000000000e+01", "metric.loss": "+1.000000000e+00"}
    return Reply(f"client-{number:04d}", messages.encode({"delta": update}, notes), 0.0)


def _seconds_of_sum(memory: Tensor) -> float:
    began = time.perf_counter()
    memory.sum()
    return time.perf_counter() - began


def _seconds_of_two_calls(updates: Sequence[Tensor]) -> float:
    """Time what combining cannot do without: each update's norm, and adding it."""
    total = torch.zeros_like(updates[0])
    began = time.perf_counter()
    for update in updates:
        float(torch.linalg.vector_norm(update))
        total.add_(update, alpha=10.0)
    return time.perf_counter() - began
