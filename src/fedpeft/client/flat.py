"""The live delta as two flat buffers: one for values, one for gradients.

    parameter.data ──view──> value_P        one copy writes a whole delta
    parameter.grad ──view──> grad_P         one call clips, decays, steps

P trained parameters: first those that are sent, then those that stay at the client.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fedpeft.core.deltas import DeltaSpec
from fedpeft.tuning.tuned import TunedModel, read_delta

__all__ = ["FlatDelta"]


class FlatDelta:
    """The trainable parameters of a tuned model, as views of one flat buffer.

    Once it is made, the parameters of the model are views of `value_P`. Gradients become views of
    `grad_P` in the first backward pass; parameters without a gradient are not active.

    Args:
      tuned: the model, already on its device.
    """

    def __init__(self, tuned: TunedModel) -> None:
        parameters = [*tuned.parameters.values(), *tuned.local.values()]
        device = parameters[0].device if parameters else torch.device("cpu")
        self._parameters = parameters
        spec = tuned.spec
        self.value_P = read_delta(tuned)
        if tuned.local:
            own = tuned.local_spec
            spec = DeltaSpec(spec.names + own.names, spec.shapes + own.shapes, spec.dtype)
            self.value_P = torch.cat([self.value_P, own.flatten(tuned.local)])
        self.grad_P = torch.zeros_like(self.value_P, device=device)
        self.active_P: Tensor | None = None
        self._attached = False
        views = spec.unflatten(self.value_P)
        self._grads = list(spec.unflatten(self.grad_P).values())
        for parameter, view in zip(parameters, views.values(), strict=True):
            parameter.data = view
            parameter.grad = None

    def clear(self) -> None:
        """Set all gradients to zero, before a backward pass."""
        if self._attached:
            self.grad_P.zero_()

    def collect(self) -> Tensor:
        """Return `grad_P` after a backward pass."""
        if not self._attached:
            self._attach()
        return self.grad_P

    def _attach(self) -> None:
        took_part = [parameter.grad is not None for parameter in self._parameters]
        for parameter, view in zip(self._parameters, self._grads, strict=True):
            if parameter.grad is not None:
                view.copy_(parameter.grad)
            parameter.grad = view
        if not all(took_part):
            pairs = zip(took_part, self._grads, strict=True)
            parts = [torch.full_like(v, float(a)).reshape(-1) for a, v in pairs]
            self.active_P = torch.cat(parts)
        self._attached = True
