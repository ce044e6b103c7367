"""Ask clients with a high training loss more often.

    probability of client i  ~  loss_i ** power        (those never asked: as the highest known)

References:
  The idea is that of Cho, Wang, Joshi, Client Selection in Federated Learning, 2020.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from fedpeft import Sampler
from fedpeft.client.turns import Memory
from fedpeft.core import seeds
from fedpeft.core.errors import ConfigError
from fedpeft.server.sampling import Draw

__all__ = ["by_loss"]


def by_loss(*, power: float = 1.0) -> Sampler:
    """Draw clients with probability proportional to a power of their last training loss.

    Args:
      power: >= 0; 0 draws uniformly.
    """
    if power < 0:
        raise ConfigError(f"power: found {power}; allowed is 0 or more")

    def draw(clients: Sequence[str], memory: Memory, draw: Draw) -> Sequence[str]:
        highest = max((float(value) for value in memory.values()), default=1.0)
        losses = torch.tensor([float(memory.get(client, highest)) for client in clients])
        generator = seeds.generator(draw.seed, "by_loss", draw.round)
        weights = losses.clamp(min=1e-6) ** power
        chosen = torch.multinomial(weights, min(draw.size, len(clients)), generator=generator)
        return [clients[place] for place in chosen.tolist()]

    def observe(memory: Memory, draw: Draw, metrics: Mapping[str, Mapping[str, float]]) -> Memory:
        seen = {client: torch.tensor(figures["loss"]) for client, figures in metrics.items()}
        return {**memory, **seen}

    return Sampler(draw, observe)
