"""Training of K clients in one pass over the frozen backbone they share.

    delta_KP   one row a client          frozen layers: one batch [K * B, ...]
    grad_KP    from one backward pass    trained layers: an axis for the clients (`many_forms`)
    step_KP    each optimiser its own row; a client without a batch keeps its row and its state

The result is that of one by one within rounding: sums are taken in another order. Clients are
ordered by their number of steps, so that those still at work are the first rows. Legend: K clients
of a group, A of them at work, G of a pass, P trained parameters, B examples.

Reference: McMahan et al., Communication-Efficient Learning of Deep Networks, AISTATS 2017.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from fedpeft.client.local import LocalSettings, autocast, local_trainer, to_device
from fedpeft.client.many_batches import (
    ClientBatch,
    Pass,
    client_batches,
    join,
    num_steps,
    split_by_size,
)
from fedpeft.client.many_forms import Live, Place, find_places, in_place
from fedpeft.client.many_tail import last_block
from fedpeft.client.optimizers import make_step
from fedpeft.client.private import draw, noise_root, paper_gradient
from fedpeft.client.turns import DELTA, ClientTurn, LocalResult, LocalTrainer, Payload
from fedpeft.tuning.tuned import TunedModel

__all__ = ["MANY_FAMILIES", "MANY_METHODS", "many_trainer", "why_one_by_one"]

MANY_METHODS = (
    "adapter",
    "bias",
    "dora",
    "head",
    "ia3",
    "ln_tuning",
    "lora",
    "prompt",
    "rslora",
)
"""Methods whose clients can share a pass; all others train one by one."""

MANY_FAMILIES = (
    "bert",
    "deit",
    "distilbert",
    "gpt2",
    "llama",
    "qwen2",
    "qwen3",
    "roberta",
    "videomae",
    "vit",
)
"""Families whose modules treat the rows of a batch apart, and call their layers as modules."""


@dataclass(frozen=True)
class Found:
    """What one pass gives.

    Attributes:
      grad_GP: gradient of each client's own mean loss.
      loss_G: each client's summed loss.
      count_G: how many predictions that is of.
      active_P: 1 where a parameter takes part in the loss, else 0; None where all do.
    """

    grad_GP: Tensor
    loss_G: Tensor
    count_G: Tensor
    active_P: Tensor | None


Gradients: TypeAlias = Callable[[Tensor, Pass], Found]
"""From values [G, P] and a pass of G clients to their gradients."""


@dataclass(frozen=True)
class _Setup:
    """What does not change from group to group."""

    settings: LocalSettings
    gradients: Gradients
    pad_id: int


def why_one_by_one(tuned: TunedModel, settings: LocalSettings) -> str:
    """Say why a model's clients cannot share a pass; empty where they can."""
    family = tuned.loaded.family.name
    if tuned.method not in MANY_METHODS:
        return f"tuning.method = {tuned.method!r} trains clients one by one"
    if family not in MANY_FAMILIES:
        return f"models of family {family!r} train clients one by one"
    if settings.privacy is not None and settings.privacy.kind == "example":
        return "privacy.mode = 'example' clips example by example, and trains clients one by one"
    if tuned.buffers or tuned.trains_statistics:
        return "a model whose buffers train does so one client at a time"
    found = find_places(tuned, Live())
    return f"no layer with an axis for the clients: {found}" if isinstance(found, str) else ""


def many_trainer(
    tuned: TunedModel, settings: LocalSettings, *, clients_per_pass: int
) -> LocalTrainer:
    """Return a trainer that takes `clients_per_pass` turns at a time, in order.

    It trains one by one where `why_one_by_one` says so, and what is left over as a single turn. It
    owns the model from here on, as that of `local_trainer` does.
    """
    one_by_one = local_trainer(tuned, settings)
    if clients_per_pass == 1 or why_one_by_one(tuned, settings):
        return one_by_one
    live = Live()
    places = find_places(tuned, live)
    assert not isinstance(places, str)
    if (last := last_block(tuned)) is not None:
        places = [*places, Place(last[0], "forward", last[1])]
    pad_id = getattr(getattr(tuned.loaded.module, "config", None), "pad_token_id", None)
    setup = _Setup(settings, _gradients(tuned, settings, live), pad_id or 0)

    def train(broadcast: Payload, turns: Sequence[ClientTurn]) -> Iterator[LocalResult]:
        for start in range(0, len(turns), clients_per_pass):
            group = turns[start : start + clients_per_pass]
            if len(group) == 1:
                yield from one_by_one(broadcast, group)
                continue
            tuned.model.eval()
            with in_place(places):
                results = _train_group(setup, group, broadcast[DELTA].to(settings.device))
            live.values = {}
            yield from results

    return train


def _train_group(setup: _Setup, group: Sequence[ClientTurn], start_P: Tensor) -> list[LocalResult]:
    """Train the clients of a group side by side, and return their results in the group's order."""
    settings = setup.settings
    steps = [num_steps(turn, settings) for turn in group]
    order = sorted(range(len(group)), key=lambda place: -steps[place])
    turns = [group[place] for place in order]
    feeds = [client_batches(turn, settings) for turn in turns]
    value_KP = start_P.expand(len(group), -1).clone()
    sums_2K = torch.zeros(2, len(group), dtype=torch.float64, device=value_KP.device)
    step = None
    for number in range(1, max(steps) + 1):
        at_work = sum(1 for total in steps if total >= number)
        batches = [next(feed) for feed in feeds[:at_work]]
        value_AP = value_KP[:at_work]
        found = _joined_gradients(setup, value_AP, batches)
        grad_AP = _private(settings, found.grad_GP, turns, number)
        if settings.prox_mu:
            grad_AP.add_(value_AP - start_P, alpha=settings.prox_mu)
        step = step or make_step(settings.optimizer, found.active_P)
        step(value_AP, grad_AP)
        last_A = torch.tensor([batch.counts for batch in batches], device=value_KP.device)
        figures_2A = torch.stack([found.loss_G, found.count_G]).double()
        sums_2K[:, :at_work] += torch.where(last_A, figures_2A, 0.0)
    update_KP = (value_KP - start_P).cpu()
    loss_K = (sums_2K[0] / sums_2K[1].clamp(min=1)).tolist()
    rows = sorted(range(len(group)), key=order.__getitem__)
    return [
        LocalResult(
            {DELTA: update_KP[row].clone()}, float(len(turns[row].data)), _metrics(loss_K[row])
        )
        for row in rows
    ]


def _metrics(loss: float) -> dict[str, float]:
    return {"loss": loss}


def _joined_gradients(setup: _Setup, value_AP: Tensor, batches: Sequence[ClientBatch]) -> Found:
    """Take the gradients of all clients at work: in one pass, or more where batches differ much."""
    parts = split_by_size([len(batch.keys_B) for batch in batches])
    if len(parts) == 1:
        return setup.gradients(value_AP, join(batches, setup.pad_id))
    founds = [
        setup.gradients(value_AP[part], join([batches[place] for place in part], setup.pad_id))
        for part in parts
    ]
    back = torch.tensor([place for part in parts for place in part]).argsort()
    return Found(
        torch.cat([found.grad_GP for found in founds])[back],
        torch.cat([found.loss_G for found in founds])[back],
        torch.cat([found.count_G for found in founds])[back],
        founds[0].active_P,
    )


def _private(
    settings: LocalSettings, grad_AP: Tensor, turns: Sequence[ClientTurn], number: int
) -> Tensor:
    """Clip and noise each client's gradient by itself, as the privacy settings say."""
    chosen = settings.privacy
    if chosen is None:
        return grad_AP
    rows = []
    for grad_P, turn in zip(grad_AP, turns, strict=False):
        noise_P = draw(noise_root(chosen, turn), len(grad_P), chosen.deviation, turn, number)
        rows.append(paper_gradient(chosen, grad_P, settings.batch_size, noise_P))
    return torch.stack(rows)


def _gradients(tuned: TunedModel, settings: LocalSettings, live: Live) -> Gradients:
    """Return the function that runs a pass forward and backward."""
    spec = tuned.spec

    def gradients(value_GP: Tensor, one: Pass) -> Found:
        parts = torch.split(value_GP.detach(), list(spec.sizes), dim=1)
        leaves = [
            part.view(-1, *shape).requires_grad_()
            for part, shape in zip(parts, spec.shapes, strict=True)
        ]
        live.values = dict(zip(spec.names, leaves, strict=True))
        batch = to_device(one.tensors, settings.device)
        with tuned.dropout.using(one.keys.to(settings.device)), autocast(settings):
            scores = tuned.loaded.task.score(tuned.model, batch)
        loss_GB, count_GB = (v.view(len(value_GP), -1) for v in (scores.loss_B, scores.count_B))
        if one.weight_GB is not None:
            weight_GB = one.weight_GB.to(settings.device)
            loss_GB, count_GB = loss_GB * weight_GB, count_GB * weight_GB
        loss_G, count_G = loss_GB.sum(1), count_GB.sum(1)
        total = (loss_G / count_G.clamp(min=1)).sum()
        found = torch.autograd.grad(total, leaves, allow_unused=True)
        pairs = list(zip(found, leaves, strict=True))
        flat = [(torch.zeros_like(v) if g is None else g).flatten(1) for g, v in pairs]
        return Found(torch.cat(flat, 1), loss_G.detach(), count_G.detach(), _active(pairs))

    return gradients


def _active(pairs: Sequence[tuple[Tensor | None, Tensor]]) -> Tensor | None:
    """Return 1 where a parameter got a gradient, else 0 [P]; None where all did."""
    if all(gradient is not None for gradient, _ in pairs):
        return None
    return torch.cat(
        [torch.full_like(v[0].detach(), float(g is not None)).flatten() for g, v in pairs]
    )
