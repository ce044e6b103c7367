"""Private local training: clipped and noised gradients instead of a batch's mean gradient.

    example     (sum_i clip(g_i, C) + N(0, (zC)^2)) / B      g_i: the gradient of example i alone
    author      mean gradient + N(0, s^2)                    the paper's code: no clip, no guarantee
    corrected   clip(mean gradient, C) + N(0, s^2) / B       its corrected formula: no guarantee

B is the configured batch size, a constant: a smaller batch is divided by it too. The noise of
`example` comes from a secret root of 32 bytes, which each client draws in its first turn and keeps
in its memory.

References:
  Abadi et al., Deep Learning with Differential Privacy, CCS 2016 (`example`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from fedpeft.client.flat import active_mask
from fedpeft.client.masks import can_batch_text, with_spread_mask
from fedpeft.client.turns import ClientTurn, Memory
from fedpeft.core.errors import PrivacyError
from fedpeft.core.noise import clip, draw_root, gaussian, seeded_root
from fedpeft.models.tasks import Batch, mean_loss
from fedpeft.tuning.methods import METHODS
from fedpeft.tuning.tuned import TunedModel

__all__ = [
    "GradientPrivacy",
    "RowGradients",
    "check_rows",
    "draw",
    "kept_root",
    "noised",
    "one_by_one",
    "row_gradients",
    "with_root",
]

_ROOT = "gradient.root"
_CHUNK_BYTES = 256 * 2**20

RowGradients: TypeAlias = Callable[[Batch, Tensor], Tensor]
"""(batch of B examples, dropout keys [B]) -> gradients [B, P], one row per example."""


@dataclass(frozen=True)
class GradientPrivacy:
    """The mechanism that clips and noises gradients.

    `by_example` with `secret` gives differential privacy of single examples. Without them this is
    the paper's mechanism, which guarantees nothing: as in its formula, or, without a clip and not
    `divided`, as in its code.

    Attributes:
      clip_norm: bound C, > 0, of an example's gradient or of a batch's mean; infinite: no clip.
      deviation: standard deviation of the noise before it is divided.
      by_example: whether each example's gradient is clipped, instead of the batch's mean gradient.
      divided: whether the noise is divided by the batch size.
      secret: whether noise comes from the client's secret root, instead of the turn's known seed.
    """

    clip_norm: float
    deviation: float
    by_example: bool = False
    divided: bool = True
    secret: bool = False


def with_root(chosen: GradientPrivacy | None, turn: ClientTurn) -> ClientTurn:
    """Return the turn with the root [32] of its noise in its memory.

    With `secret`, a client draws the root in its first turn; `kept_root` returns what its memory
    must keep.
    """
    if chosen is None:
        return turn
    if not chosen.secret:
        root = seeded_root(turn.seed)
    elif _ROOT in turn.memory:
        root = turn.memory[_ROOT]
    else:
        root = draw_root()
    return replace(turn, memory={**turn.memory, _ROOT: root})


def kept_root(chosen: GradientPrivacy | None, turn: ClientTurn) -> Memory:
    """Return what a client keeps of a turn `with_root` for its next turn: its secret, if any."""
    return {_ROOT: turn.memory[_ROOT]} if chosen is not None and chosen.secret else {}


def draw(chosen: GradientPrivacy, turn: ClientTurn, count: int, step: int) -> Tensor:
    """Draw the noise [count] of one step (from 1) of a turn `with_root`."""
    return gaussian(turn.memory[_ROOT], count, chosen.deviation, "gradient", turn.round, step)


def noised(chosen: GradientPrivacy, grad_P: Tensor, batch_size: int, noise_P: Tensor) -> Tensor:
    """Return the noised gradient [P] for one step of a client's optimiser.

    Args:
      chosen: the mechanism.
      grad_P: with `by_example` the sum of the batch's clipped gradients; else its mean gradient.
      batch_size: B, a constant of the run.
      noise_P: noise from `draw`.
    """
    noise_P = noise_P.to(grad_P)
    if chosen.by_example:
        return (grad_P + noise_P) / batch_size
    return clip(grad_P, chosen.clip_norm) + noise_P / (batch_size if chosen.divided else 1)


def row_gradients(tuned: TunedModel) -> RowGradients:
    """Return a function for per-example gradients, in one pass if `torch.func.vmap` supports it.

    Examples are processed one by one if a method's operations have no batching rule, or if a text
    model's masks cannot be batched (`fedpeft.client.masks`).
    """
    method = METHODS.get(tuned.method)
    text = tuned.loaded.task.inputs == "text"
    probe = _Probe(tuned)
    slots = _slots(probe)
    outside = any(id(parameter) not in slots for parameter in tuned.parameters.values())
    unmapped = method is None or not method.vmaps or (text and not can_batch_text(tuned))
    if outside or unmapped:
        return lambda batch, keys_B: one_by_one(tuned, batch, keys_B)[0]
    places = {name: slots[id(parameter)] for name, parameter in tuned.parameters.items()}

    def loss(values: dict[str, Tensor], row: Batch, key: Tensor) -> Tensor:
        example = {name: value.unsqueeze(0) for name, value in row.items()}
        exchanged = {slot: value for name, value in values.items() for slot in places[name]}
        found: Tensor = torch.func.functional_call(
            probe, exchanged, (example, key.unsqueeze(0)), tie_weights=False
        )
        return found

    batched = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))

    def gradients(batch: Batch, keys_B: Tensor) -> Tensor:
        values = {name: parameter.detach() for name, parameter in tuned.parameters.items()}
        batch = with_spread_mask(tuned, batch) if text else batch
        chunk = max(1, _CHUNK_BYTES // max(1, 4 * tuned.spec.num_params))
        parts = []
        for start in range(0, len(keys_B), chunk):
            part = {name: value[start : start + chunk] for name, value in batch.items()}
            with sdpa_kernel(SDPBackend.MATH):  # the attention kernel with a batching rule
                found = batched(values, part, keys_B[start : start + chunk])
            parts.append(torch.cat([found[name].flatten(1) for name in values], 1))
        return torch.cat(parts)

    return gradients


def one_by_one(tuned: TunedModel, batch: Batch, keys_B: Tensor) -> tuple[Tensor, Tensor]:
    """Return gradients [B, P], one backward pass each, and 1 where a parameter has one [P]."""
    parameters = list(tuned.parameters.values())
    rows, active_P = [], torch.zeros(0)
    for i in range(len(keys_B)):
        example = {name: value[i : i + 1] for name, value in batch.items()}
        with tuned.dropout.using(keys_B[i : i + 1]):
            loss = mean_loss(tuned.loaded.task.score(tuned.model, example))
        found = torch.autograd.grad(loss, parameters, allow_unused=True)
        pairs = list(zip(found, parameters, strict=True))
        filled = [torch.zeros_like(p) if g is None else g for g, p in pairs]
        rows.append(torch.cat([gradient.reshape(-1) for gradient in filled]))
        active_P = active_mask(found, parameters)
    return torch.stack(rows), active_P


def check_rows(tuned: TunedModel, gradients: RowGradients, batch: Batch, keys_B: Tensor) -> Tensor:
    """Compare per-example gradients with one-by-one gradients on two examples, before training.

    Returns:
      1 for a parameter that affects the loss, else 0; [P].

    Raises:
      PrivacyError: if they differ, or one example's gradient depends on the other.
    """
    two = {name: value[:2] for name, value in batch.items()}
    expected_BP, active_P = one_by_one(tuned, two, keys_B[:2])
    found_BP = gradients(two, keys_B[:2])
    scale = float(expected_BP.abs().max()) + 1e-12
    error = float((found_BP - expected_BP).abs().max()) / scale
    if not error <= 1e-3:
        raise PrivacyError(
            f"privacy.mode = 'example' with {tuned.method}: per-example gradients differ from "
            f"one-by-one gradients by {error:.2g} of the largest; at most 0.001 is allowed, "
            "because a clip of wrong gradients bounds nothing. Use mode 'central' or another method"
        )
    return active_P


class _Probe(nn.Module):
    """The loss of a batch, as a module whose parameters `torch.func` can replace."""

    def __init__(self, tuned: TunedModel) -> None:
        super().__init__()
        self.model = tuned.model
        self._tuned = tuned

    def forward(self, batch: Batch, keys_B: Tensor) -> Tensor:
        """Return the mean loss of a batch."""
        with self._tuned.dropout.using(keys_B):
            return mean_loss(self._tuned.loaded.task.score(self.model, batch))


def _slots(module: nn.Module) -> dict[int, list[str]]:
    """Map each parameter's id to all paths under which the module holds it, each path once.

    Layers may share a parameter, or a module that holds it. `functional_call` would replace the
    parameter of a shared module twice, and fail to restore it.
    """
    slots: dict[int, list[str]] = {}
    for path, part in module.named_modules():
        for name, parameter in part.named_parameters(recurse=False, remove_duplicate=False):
            slots.setdefault(id(parameter), []).append(f"{path}.{name}" if path else name)
    return slots
