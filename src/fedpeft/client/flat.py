"""The live delta as two flat buffers: one for values, one for gradients.

    parameter.data ──view──> value_P        one copy writes a whole delta
    parameter.grad ──view──> grad_P         one call clips, decays, steps

P trained parameters: first those that are sent, then those that stay at the client.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fedpeft.core.deltas import DeltaSpec
from fedpeft.tuning.tuned import TunedModel, read_delta


class FlatDelta:
    """The trainable parameters of a tuned model, as views of one flat buffer.

    Once it is made, the parameters of the model are views of `value_P`. Gradients become views of
    `grad_P` in the first backward pass; parameters without a gradient are not active. `spec` has
    the shapes of all of them.

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
        self.spec = spec
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
        found = [parameter.grad for parameter in self._parameters]
        if any(gradient is None for gradient in found):
            self.active_P = active_mask(found, self._grads)
        for parameter, gradient, view in zip(self._parameters, found, self._grads, strict=True):
            if gradient is not None:
                view.copy_(gradient)
            parameter.grad = view
        self._attached = True


def active_mask(gradients: Sequence[Tensor | None], values: Sequence[Tensor]) -> Tensor:
    """Return 1 for each element of a value with a gradient, else 0; flat, [P]."""
    pairs = zip(gradients, values, strict=True)
    return torch.cat(
        [torch.full_like(v, float(g is not None)).detach().flatten() for g, v in pairs]
    )
