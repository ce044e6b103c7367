"""Gradients of several clients, each of its own loss, from one backward pass.

    loss = sum_k loss_k(delta_k)      d loss / d delta_k = d loss_k / d delta_k
    per example: every row counts as a client, with a copy of its client's delta; rows are clipped,
    then summed over each client

Legend: G clients of a pass, B examples of each, P trained parameters, R rows of a chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from fedpeft.client.batches import to_device
from fedpeft.client.checkpointing import checkpointed
from fedpeft.client.flat import active_mask
from fedpeft.client.passes.client_axis import Live
from fedpeft.client.passes.joint_batches import Pass
from fedpeft.client.passes.layers import Place, in_place
from fedpeft.client.settings import LocalSettings, autocast
from fedpeft.core.noise import clip_rows
from fedpeft.models.tasks import Batch
from fedpeft.tuning.tuned import TunedModel

_ROW_BYTES = 256 * 2**20


@dataclass(frozen=True)
class PassGradients:
    """The result of one pass.

    Attributes:
      grad_GP: gradient of each client's own mean loss.
      loss_G: each client's summed loss.
      count_G: number of predictions in each client's sum.
      active_P: 1 for a parameter that affects the loss, else 0; None if all do.
    """

    grad_GP: Tensor
    loss_G: Tensor
    count_G: Tensor
    active_P: Tensor | None


Gradients: TypeAlias = Callable[[Tensor, Pass], PassGradients]
"""(values [G, P], pass of G clients) -> their gradients."""


def stacked_gradients(
    tuned: TunedModel, settings: LocalSettings, live: Live, places: Sequence[Place]
) -> Gradients:
    """Return the function that runs a pass forward and backward.

    Forms are in place during a pass only: features may come from the frozen prefix of the same
    model, which must compute as usual.

    Args:
      tuned: the model.
      settings: device and precision; the rest is not used.
      live: holder of the clients' values, which the forms read.
      places: the methods that forms replace.
    """
    spec = tuned.spec

    def gradients(value_GP: Tensor, one: Pass) -> PassGradients:
        parts = torch.split(value_GP.detach(), list(spec.sizes), dim=1)
        leaves = [
            part.view(-1, *shape).requires_grad_()
            for part, shape in zip(parts, spec.shapes, strict=True)
        ]
        live.values = dict(zip(spec.names, leaves, strict=True))
        batch = to_device(one.tensors, settings.device)
        keys = one.keys.to(settings.device)
        with in_place(places), tuned.dropout.using(keys):
            found, loss_G, count_G = _pass(tuned, settings, batch, leaves, one.weight_GB)
        pairs = list(zip(found, leaves, strict=True))
        flat = [(torch.zeros_like(v) if g is None else g).flatten(1) for g, v in pairs]
        complete = all(gradient is not None for gradient in found)
        active_P = None if complete else active_mask(found, [leaf[0] for leaf in leaves])
        return PassGradients(torch.cat(flat, 1), loss_G.detach(), count_G.detach(), active_P)

    return gradients


def _pass(
    tuned: TunedModel,
    settings: LocalSettings,
    batch: Batch,
    leaves: Sequence[Tensor],
    weight_GB: Tensor | None,
) -> tuple[Sequence[Tensor | None], Tensor, Tensor]:
    """Run a pass forward and backward: gradients, losses [G] and counts [G].

    Forms stay in place for both, as a checkpointed block runs in both.
    """
    with autocast(settings), checkpointed(tuned.model, on=settings.checkpointing):
        scores = tuned.loaded.task.score(tuned.model, batch)
    clients = len(leaves[0])
    loss_GB, count_GB = (v.view(clients, -1) for v in (scores.loss_B, scores.count_B))
    if weight_GB is not None:
        weight_GB = weight_GB.to(settings.device)
        loss_GB, count_GB = loss_GB * weight_GB, count_GB * weight_GB
    loss_G, count_G = loss_GB.sum(1), count_GB.sum(1)
    total = (loss_G / count_G.clamp(min=1)).sum()
    return torch.autograd.grad(total, leaves, allow_unused=True), loss_G, count_G


def clipped_by_example(gradients: Gradients, bound: float) -> Gradients:
    """Return gradients that are sums of examples' gradients, each clipped to a norm of `bound`.

    Their losses are set to zero, because they are not protected and must not leave a client.
    """

    def clipped(value_GP: Tensor, one: Pass) -> PassGradients:
        clients, num_params = value_GP.shape
        client_R = torch.arange(len(one.keys), device=value_GP.device) // (len(one.keys) // clients)
        room = max(1, _ROW_BYTES // (4 * num_params))
        total_GP, active_P = torch.zeros_like(value_GP), None
        for start in range(0, len(one.keys), room):
            rows = slice(start, start + room)
            batch = {name: value[rows] for name, value in one.tensors.items()}
            found = gradients(value_GP[client_R[rows]], Pass(batch, one.keys[rows], None))
            short_RP, active_P = clip_rows(found.grad_GP, bound), found.active_P
            if one.weight_GB is not None:
                short_RP = short_RP * one.weight_GB.flatten()[rows, None].to(short_RP)
            total_GP.index_add_(0, client_R[rows], short_RP)
        none_G = value_GP.new_zeros(clients)
        return PassGradients(total_GP, none_G, none_G, active_P)

    return clipped
