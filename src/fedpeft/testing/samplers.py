"""What every sampler keeps."""

from __future__ import annotations

import torch

from fedpeft.client.turns import Memory
from fedpeft.server.sampling import Draw, Sampler
from fedpeft.testing.world import same_tensors

__all__ = ["check_sampler"]


def check_sampler(sampler: Sampler, *, rounds: int = 5) -> None:
    """Check the laws of a sampler over some rounds with ten clients, four asked in each.

    A cohort is distinct clients of the run; equal draws from equal memories are equal; arguments
    stay as they are; what is kept is tensors, so that a checkpoint holds it.

    Raises:
      AssertionError: naming the law that does not hold.
    """
    clients = tuple(f"client-{i}" for i in range(10))
    memory: Memory = {}
    for number in range(1, rounds + 1):
        draw = Draw(number, 4, seed=1)
        before = {name: value.clone() for name, value in memory.items()}
        cohort = tuple(sampler.draw(clients, memory, draw))
        assert len(set(cohort)) == len(cohort), f"draw: a client stands twice in {cohort}"
        assert set(cohort) <= set(clients), f"draw: {cohort} are not all clients of the run"
        assert tuple(sampler.draw(clients, memory, draw)) == cohort, "draw: equal draws differ"
        metrics = {client: {"loss": 1.0 / (1 + int(client[-1]))} for client in cohort}
        after = sampler.observe(memory, draw, metrics)
        assert same_tensors(memory, before), "observe: it changes the memory it is given"
        assert all(isinstance(value, torch.Tensor) for value in after.values()), (
            "observe: only tensors can be kept"
        )
        memory = after
