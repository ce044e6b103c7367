"""The laws of every sampler."""

from __future__ import annotations

import torch

from fedpeft.client.turns import Memory
from fedpeft.server.sampling import Draw, Sampler
from fedpeft.testing.world import same_tensors


def check_sampler(sampler: Sampler, *, rounds: int = 5) -> None:
    """Check the laws of a sampler over some rounds, with ten clients and cohorts of four.

    A cohort consists of distinct clients of the run; equal draws from equal memories are equal;
    arguments are not modified; the memory consists of tensors, so that a checkpoint can hold it.

    >>> from fedpeft.server.sampling import fixed
    >>> check_sampler(fixed())

    Args:
      sampler: the sampler.
      rounds: number of rounds.

    Raises:
      AssertionError: if a law does not hold; the message names it.
    """
    clients = tuple(f"client-{i}" for i in range(10))
    memory: Memory = {}
    for number in range(1, rounds + 1):
        draw = Draw(number, 4, seed=1)
        before = {name: value.clone() for name, value in memory.items()}
        cohort = tuple(sampler.draw(clients, memory, draw))
        assert len(set(cohort)) == len(cohort), f"draw: a client appears twice in {cohort}"
        assert set(cohort) <= set(clients), f"draw: {cohort} are not all clients of the run"
        assert tuple(sampler.draw(clients, memory, draw)) == cohort, "draw: equal draws differ"
        metrics = {client: {"loss": 1.0 / (1 + int(client[-1]))} for client in cohort}
        after = sampler.observe(memory, draw, metrics)
        assert same_tensors(memory, before), "observe: it modifies its memory"
        assert all(isinstance(value, torch.Tensor) for value in after.values()), (
            "observe: a memory may hold tensors only"
        )
        memory = after
