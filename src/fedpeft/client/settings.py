"""The settings of a client's local training."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field

import torch

from fedpeft.client.optimizers import OptimizerSettings
from fedpeft.client.private import GradientPrivacy
from fedpeft.client.schedules import CONSTANT, Schedule


@dataclass(frozen=True)
class LocalSettings:
    """Settings of local training.

    Attributes:
      epochs: passes over the client's examples, >= 1; None: as many as `max_steps` takes.
      batch_size: examples in one pass forward and backward; the last batch of an epoch may be
        smaller.
      optimizer: the optimiser, with fresh state in every turn.
      prox_mu: weight of FedProx's proximal term, >= 0.
      device: `cpu`, `cuda` or `cuda:N`.
      precision: `fp32`, or `bf16` for autocast on devices that have it.
      privacy: how gradients are clipped and noised; None leaves them as they are.
      max_steps: most steps of the optimiser in a turn, >= 1; None: no limit. One of `epochs` and
        `max_steps` is given.
      accumulation: batches whose gradients make one step, >= 1; the last step of an epoch may have
        fewer.
      gradient_clip: largest L2 norm of a step's gradient, > 0; None: no limit.
      schedule: of the learning rate, over the steps of a turn.
      round_schedule: of the learning rate, over the rounds of the run.
      rounds: number of rounds of the run, >= 1; for `round_schedule`.
      by_length: whether texts of similar length share a batch.
      checkpointing: whether blocks run again in the backward pass, to keep less in memory.
    """

    epochs: int | None = 10
    batch_size: int = 64
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    prox_mu: float = 0.0
    device: str = "cpu"
    precision: str = "fp32"
    privacy: GradientPrivacy | None = None
    max_steps: int | None = None
    accumulation: int = 1
    gradient_clip: float | None = None
    schedule: Schedule = CONSTANT
    round_schedule: Schedule = CONSTANT
    rounds: int = 1
    by_length: bool = False
    checkpointing: bool = False


def autocast(settings: LocalSettings) -> contextlib.AbstractContextManager[object]:
    """Return the autocast context of the chosen precision."""
    if settings.precision == "fp32":
        return contextlib.nullcontext()
    kind = torch.device(settings.device).type
    return torch.autocast(device_type=kind, dtype=torch.bfloat16)
