"""Local training of one client: a few epochs on its own examples, from the server's delta.

    delta_0 = broadcast;   for each epoch, for each batch b in the order of the turn's seed:
        delta <- step(delta, grad mean loss(b) + mu (delta - delta_0))
    update = delta - delta_0

References:
  McMahan et al., Communication-Efficient Learning of Deep Networks from Decentralized Data, 2017.
  Li et al., Federated Optimization in Heterogeneous Networks (the proximal term), 2020.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fedpeft.client.batches import dropout_keys, take_batch
from fedpeft.client.flat import FlatDelta
from fedpeft.client.frozen.tail import short_tail
from fedpeft.client.optimizers import OptimizerSettings, make_step
from fedpeft.client.private import (
    GradientPrivacy,
    RowGradients,
    check_turn,
    kept_root,
    private_step,
    row_gradients,
    rows_at_once,
    sent,
    turn_batches,
    with_root,
)
from fedpeft.client.turns import BUFFERS, DELTA, ClientTurn, LocalResult, LocalTrainer, Payload
from fedpeft.core.errors import PrivacyError
from fedpeft.core.noise import clip_rows
from fedpeft.models.tasks import Batch, Scores, mean_loss
from fedpeft.tuning.tuned import TunedModel, move, read_buffers, write_buffers

_OWN = "own"
"""Key, in a client's memory, of the parts of the delta that stay at the client."""


@dataclass(frozen=True)
class LocalSettings:
    """Settings of local training.

    Attributes:
      epochs: passes over the client's examples, >= 1.
      batch_size: examples per step; the last batch of an epoch may be smaller.
      optimizer: the optimiser, with fresh state in every turn.
      prox_mu: weight of FedProx's proximal term, >= 0.
      device: `cpu`, `cuda` or `cuda:N`.
      precision: `fp32`, or `bf16` for autocast on devices that have it.
      privacy: how gradients are clipped and noised; None leaves them as they are.
    """

    epochs: int = 10
    batch_size: int = 64
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    prox_mu: float = 0.0
    device: str = "cpu"
    precision: str = "fp32"
    privacy: GradientPrivacy | None = None


def local_trainer(tuned: TunedModel, settings: LocalSettings) -> LocalTrainer:
    """Return a trainer that trains one client after the other in `tuned`.

    The trainer takes ownership of the model: it moves it to the device and makes its parameters
    views of one flat buffer.

    Raises:
      PrivacyError: if gradients are to be noised and a part of the delta stays at the clients: the
        privacy accountant does not cover such parts.
    """
    if tuned.local and settings.privacy is not None:
        raise PrivacyError(
            "privacy.mode: noised gradients together with local parts of the delta are not "
            "supported; send the whole delta, or use privacy.mode = 'central' or 'local'"
        )
    device = torch.device(settings.device)
    move(tuned, settings.device)
    flat = FlatDelta(tuned)
    tuned.model.eval()

    by_example = settings.privacy is not None and settings.privacy.by_example
    rows = row_gradients(tuned) if by_example else None
    num_sent = tuned.spec.num_params
    first_own = flat.value_P[num_sent:].clone()

    def train(broadcast: Payload, turns: Sequence[ClientTurn]) -> Iterator[LocalResult]:
        start_P = broadcast[DELTA].to(device)
        for turn in (with_root(settings.privacy, each, settings) for each in turns):
            flat.value_P[:num_sent].copy_(start_P)
            flat.value_P[num_sent:].copy_(turn.memory.get(_OWN, first_own))
            if tuned.buffers:
                write_buffers(tuned, broadcast[BUFFERS].to(device))
            with short_tail(tuned.model):
                metrics = _train_client(tuned, flat, settings, turn, rows)
            update_P = (flat.value_P[:num_sent] - start_P).cpu()
            payload = {DELTA: sent(settings.privacy, update_P)}
            if tuned.buffers:
                payload[BUFFERS] = read_buffers(tuned).cpu()
            own = {_OWN: flat.value_P[num_sent:].cpu().clone()} if tuned.local else {}
            kept = {**kept_root(settings.privacy, turn), **own}
            yield LocalResult(payload, float(len(turn.data)), metrics, kept)

    return train


def _train_client(
    tuned: TunedModel,
    flat: FlatDelta,
    settings: LocalSettings,
    turn: ClientTurn,
    rows: RowGradients | None,
) -> dict[str, float]:
    """Train one client and return the metrics of its last epoch.

    With per-example gradients (`rows`) there are none: they would leak unprotected information.
    """
    chosen = settings.privacy
    start_P = flat.value_P.clone() if settings.prox_mu else flat.value_P
    step, number, num_sent, covered = None, 0, tuned.spec.num_params, ""
    loss_sum = count_sum = torch.zeros((), dtype=torch.float64)
    _set_mode(tuned, training=False)
    checked_P = check_turn(tuned, rows, turn, settings.device) if rows else None
    for epoch in range(settings.epochs):
        loss_sum = count_sum = torch.zeros((), dtype=torch.float64)
        whole = tuned.trains_statistics
        for places in turn_batches(chosen, turn, settings.batch_size, epoch, whole):
            number += 1
            keys_B = dropout_keys(turn, places, number).to(settings.device)
            if rows is None or chosen is None:
                batch = take_batch(turn, places, epoch, settings.device)
                _set_mode(tuned, training=tuned.trains_statistics and len(places) > 1)
                scores = _backward(tuned, flat, settings, batch, keys_B)
                grad_P, active_P = flat.collect(), flat.active_P
                loss_sum = loss_sum + scores.loss_B.detach().sum().double().cpu()
                count_sum = count_sum + scores.count_B.sum().double().cpu()
            else:
                grad_P, active_P = torch.zeros_like(flat.value_P), checked_P
                room = rows_at_once(len(grad_P))
                for start in range(0, len(places), room):
                    part = slice(start, start + room)
                    batch = take_batch(turn, places[part], epoch, settings.device)
                    grad_P += clip_rows(rows(batch, keys_B[part]), chosen.clip_norm).sum(0)
            if chosen is not None:
                grad_P, covered = private_step(
                    chosen, turn, grad_P, number, settings.batch_size, covered
                )
            if settings.prox_mu:  # only for the parameters that are sent: the others have no anchor
                grad_P[:num_sent].add_((flat.value_P - start_P)[:num_sent], alpha=settings.prox_mu)
            step = step or make_step(settings.optimizer, active_P)
            with torch.no_grad():
                step(flat.value_P, grad_P)
    _set_mode(tuned, training=False)
    return {} if rows is not None else {"loss": float(loss_sum / count_sum.clamp(min=1))}


def _backward(
    tuned: TunedModel, flat: FlatDelta, settings: LocalSettings, batch: Batch, keys_B: Tensor
) -> Scores:
    """Compute the gradient of a batch's mean loss into `flat`."""
    flat.clear()
    with tuned.dropout.using(keys_B), autocast(settings):
        scores = tuned.loaded.task.score(tuned.model, batch)
        loss = mean_loss(scores)
    loss.backward()  # type: ignore[no-untyped-call]  # torch has no types here
    return scores


def _set_mode(tuned: TunedModel, *, training: bool) -> None:
    """Switch the model's mode if needed: walking the modules outweighs a small model's step."""
    if tuned.model.training != training:
        tuned.model.train(training)


def autocast(settings: LocalSettings) -> contextlib.AbstractContextManager[object]:
    """Return the autocast context of the chosen precision."""
    if settings.precision == "fp32":
        return contextlib.nullcontext()
    kind = torch.device(settings.device).type
    return torch.autocast(device_type=kind, dtype=torch.bfloat16)
