"""Local training of one client: a few epochs on its own examples, from the server's delta.

    delta_0 = broadcast;   for each step of the turn (`steps.py`), b its batches:
        delta <- step(delta, clip(grad mean loss(b) + mu (delta - delta_0)))
    update = delta - delta_0

References:
  McMahan et al., Communication-Efficient Learning of Deep Networks from Decentralized Data, 2017.
  Li et al., Federated Optimization in Heterogeneous Networks (the proximal term), 2020.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from fedpeft.client.batches import dropout_keys, take_batch
from fedpeft.client.checkpointing import checkpointed, why_not_twice
from fedpeft.client.flat import FlatDelta
from fedpeft.client.frozen.tail import short_tail
from fedpeft.client.optimizers import make_step
from fedpeft.client.private import (
    RowGradients,
    check_turn,
    kept_root,
    private_step,
    row_gradients,
    rows_at_once,
    sent,
    with_root,
)
from fedpeft.client.settings import LocalSettings, autocast
from fedpeft.client.steps import TurnStep, clipped, turn_steps
from fedpeft.client.turns import BUFFERS, DELTA, ClientTurn, LocalResult, LocalTrainer, Payload
from fedpeft.core.errors import ConfigError, PrivacyError
from fedpeft.core.noise import clip_rows
from fedpeft.models.tasks import Batch, Scores, mean_loss
from fedpeft.tuning.tuned import TunedModel, move, read_buffers, write_buffers

_OWN = "own"
"""Key, in a client's memory, of the parts of the delta that stay at the client."""


def local_trainer(tuned: TunedModel, settings: LocalSettings) -> LocalTrainer:
    """Return a trainer that trains one client after the other in `tuned`.

    The trainer takes ownership of the model: it moves it to the device and makes its parameters
    views of one flat buffer.

    Raises:
      PrivacyError: if gradients are to be noised and a part of the delta stays at the clients: the
        privacy accountant does not cover such parts; or if they are clipped or added up as well.
      ConfigError: if the model cannot run with checkpoints.
    """
    if settings.checkpointing and (reason := why_not_twice(tuned)):
        raise ConfigError(f"client.gradient_checkpointing: {reason}; leave the key out")
    if settings.privacy is not None and (settings.gradient_clip or settings.accumulation > 1):
        raise PrivacyError(
            "privacy.mode: noised gradients together with client.gradient_clip or "
            "client.accumulation are not supported; leave these two keys out"
        )
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
    take, num_sent, covered = None, tuned.spec.num_params, ""
    loss_sum = count_sum = torch.zeros((), dtype=torch.float64)
    _set_mode(tuned, training=False)
    checked_P = check_turn(tuned, rows, turn, settings.device) if rows else None
    for step in turn_steps(turn, settings, tuned.trains_statistics):
        if rows is None or chosen is None:
            grad_P, loss, count = _gradient(tuned, flat, settings, turn, step)
            active_P = flat.active_P
            if step.last:
                loss_sum, count_sum = loss_sum + loss, count_sum + count
        else:
            grad_P, active_P = torch.zeros_like(flat.value_P), checked_P
            (places,) = step.batches
            keys_B = dropout_keys(turn, places, step.number).to(settings.device)
            room = rows_at_once(len(grad_P))
            for start in range(0, len(places), room):
                part = slice(start, start + room)
                batch = take_batch(turn, places[part], step.epoch, settings.device)
                grad_P += clip_rows(rows(batch, keys_B[part]), chosen.clip_norm).sum(0)
        if chosen is not None:
            grad_P, covered = private_step(
                chosen, turn, grad_P, step.number, settings.batch_size, covered
            )
        if settings.prox_mu:  # only for the parameters that are sent: the others have no anchor
            grad_P[:num_sent].add_((flat.value_P - start_P)[:num_sent], alpha=settings.prox_mu)
        if settings.gradient_clip is not None:
            grad_P = clipped(grad_P, settings.gradient_clip)
        take = take or make_step(settings.optimizer, active_P, flat.spec.shapes)
        with torch.no_grad():
            take(flat.value_P, grad_P, step.scale)
    _set_mode(tuned, training=False)
    return {} if rows is not None else {"loss": float(loss_sum / count_sum.clamp(min=1))}


def _gradient(
    tuned: TunedModel, flat: FlatDelta, settings: LocalSettings, turn: ClientTurn, step: TurnStep
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradient of a step's mean loss, its summed loss and its number of predictions."""
    flat.clear()
    loss = count = torch.zeros((), dtype=torch.float64)
    for places in step.batches:
        batch = take_batch(turn, places, step.epoch, settings.device)
        keys_B = dropout_keys(turn, places, step.number).to(settings.device)
        _set_mode(tuned, training=tuned.trains_statistics and len(places) > 1)
        scores = _backward(tuned, settings, batch, keys_B, mean=len(step.batches) == 1)
        loss = loss + scores.loss_B.detach().sum().double().cpu()
        count = count + scores.count_B.sum().double().cpu()
    grad_P = flat.collect()
    if len(step.batches) > 1:
        grad_P.div_(count.clamp(min=1).to(grad_P))
    return grad_P, loss, count


def _backward(
    tuned: TunedModel, settings: LocalSettings, batch: Batch, keys_B: Tensor, *, mean: bool
) -> Scores:
    """Add the gradient of a batch's mean loss, or else of its summed loss, to the parameters'."""
    with tuned.dropout.using(keys_B):
        with autocast(settings), checkpointed(tuned.model, on=settings.checkpointing):
            scores = tuned.loaded.task.score(tuned.model, batch)
            loss = mean_loss(scores) if mean else scores.loss_B.sum()
        loss.backward()  # type: ignore[no-untyped-call]  # torch has no types here
    return scores


def _set_mode(tuned: TunedModel, *, training: bool) -> None:
    """Switch the model's mode if needed: walking the modules outweighs a small model's step."""
    if tuned.model.training != training:
        tuned.model.train(training)
