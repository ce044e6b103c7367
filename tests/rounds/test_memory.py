"""The server keeps of a cohort's replies what a block holds, and of a run what its totals need."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Iterator

import torch

from fedpeft.core.deltas import DeltaSpec
from fedpeft.data.drawn import Names
from fedpeft.rounds.job import Job, Reply
from fedpeft.rounds.round import run_round
from fedpeft.rounds.round_plan import RoundPlan
from fedpeft.runs.records import brief, totals
from fedpeft.server.algorithms import fedavg
from fedpeft.server.sampling import sampler_of
from fedpeft.wire import messages

SIZE = 20_000
BYTES = 4 * SIZE


class Clients:
    """Clients that answer when they are asked, in blocks whose order is reversed."""

    def __init__(self, block: int) -> None:
        self.block = block

    def clients(self) -> Names:
        return Names(1000)

    def run(self, job: Job) -> Iterator[Reply]:
        for start in range(0, len(job.cohort), self.block):
            for client in reversed(job.cohort[start : start + self.block]):
                update = {"delta": torch.full((SIZE,), 0.5)}
                yield Reply(client, messages.encode(update, {"weight": "+1.0e+00"}), 0.0)


def peak(cohort: int, block: int) -> int:
    """Return the largest memory of a round, beyond what there is before it, in bytes."""
    algorithm, spec = fedavg(), DeltaSpec(("w",), ((SIZE,),))
    plan = RoundPlan(
        algorithm, sampler_of(lambda names, _: [names[i] for i in range(cohort)]), spec,
        DeltaSpec((), ()), 1, float(cohort),
    )  # fmt: skip
    state = algorithm.init(torch.zeros(SIZE), torch.empty(0))
    tracemalloc.start()
    state, record = run_round(state, plan, Clients(block))
    found = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(record.cohort) == cohort and torch.equal(state.delta, torch.full((SIZE,), 0.5))
    return found


def test_memory_of_a_round_is_that_of_a_block():
    assert peak(256, block=8) < peak(32, block=8) + 6 * BYTES


def test_replies_of_a_whole_cohort_would_be_seen():
    """The negative control: one block as large as the cohort."""
    assert peak(256, block=256) > 200 * BYTES


def test_a_run_keeps_no_cohorts_of_rounds_past():
    record = {
        "round": 1, "cohort": [f"client-{i:05d}" for i in range(10_000)], "failures": {},
        "metrics": {"loss": 0.5, "accuracy": 0.25}, "update_norm": 1.0, "bytes_down": 3,
        "bytes_up": 4, "seconds": 0.5, "client_metrics": {str(i): 0.0 for i in range(1000)},
    }  # fmt: skip
    assert totals([brief(record)] * 2) == totals([record] * 2)
    assert len(json.dumps(brief(record))) < 200
