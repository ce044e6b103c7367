"""Training of K clients in one pass over their shared frozen backbone.

    delta_KP   one row per client        frozen layers: one batch [K * B, ...]
    grad_KP    from one backward pass    trained layers: an axis for the clients (`forms.py`)
    step_KP    row by row; a client without further batches keeps its row and its state

The result equals that of training one by one up to rounding, as sums are taken in another order.
Clients are ordered by their number of steps, so that those still training are the first rows.
Legend: K clients of a group, A of them still training, G of a pass, P trained parameters,
B examples.

Reference: McMahan et al., Communication-Efficient Learning of Deep Networks, AISTATS 2017.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedpeft.client.frozen.tail import last_block
from fedpeft.client.local import local_trainer
from fedpeft.client.optimizers import make_step
from fedpeft.client.passes.client_axis import Live
from fedpeft.client.passes.gradients import (
    Gradients,
    PassGradients,
    clipped_by_example,
    stacked_gradients,
)
from fedpeft.client.passes.joint_batches import (
    ClientBatch,
    ClientStep,
    Pass,
    client_steps,
    join,
    split_by_size,
)
from fedpeft.client.passes.layers import Place, find_places
from fedpeft.client.private import (
    RowGradients,
    check_turn,
    kept_root,
    private_step,
    sent,
    with_root,
)
from fedpeft.client.settings import LocalSettings
from fedpeft.client.steps import clipped, num_steps
from fedpeft.client.turns import DELTA, ClientTurn, LocalResult, LocalTrainer, Payload
from fedpeft.models.tasks import Batch
from fedpeft.tuning.tuned import TunedModel, read_delta, write_delta

MANY_METHODS = (
    "adapter", "bias", "dora", "full", "head", "ia3", "ln_tuning", "lora", "prompt", "rslora",
    "scratch",
)  # fmt: skip
"""Methods whose clients can share a pass; clients of all others train one by one."""

MANY_FAMILIES = (
    "bert", "deit", "distilbert", "gpt2", "llama", "qwen2", "qwen3", "roberta", "videomae", "vit",
)  # fmt: skip
"""Families whose modules process the rows of a batch independently, and call layers as modules."""


@dataclass(frozen=True)
class _Setup:
    """The parts of a trainer that are the same for all groups.

    Attributes:
      tuned: the model.
      settings: settings of local training.
      live: holder of the clients' values, which the forms read.
      gradients: computes the gradients of a pass, clipped per example if privacy requires it.
      rows: computes per-example gradients, for the check before private training; else None.
      pad_id: padding token of texts.
    """

    tuned: TunedModel
    settings: LocalSettings
    live: Live
    gradients: Gradients
    rows: RowGradients | None
    pad_id: int


def why_one_by_one(tuned: TunedModel, settings: LocalSettings) -> str:
    """Return why a model's clients cannot share a pass; empty if they can."""
    family = tuned.loaded.family.name
    if tuned.method not in MANY_METHODS:
        return f"tuning.method = {tuned.method!r} trains clients one by one"
    if family not in MANY_FAMILIES:
        return f"models of family {family!r} train clients one by one"
    if tuned.buffers or tuned.trains_statistics:
        return "a model whose buffers train does so one client at a time"
    if tuned.local:
        return "a delta of which parts stay at the clients trains one client at a time"
    found = find_places(tuned, Live())
    return f"no layer with an axis for the clients: {found}" if isinstance(found, str) else ""


def many_trainer(
    tuned: TunedModel, settings: LocalSettings, *, clients_per_pass: int
) -> LocalTrainer:
    """Return a trainer that trains `clients_per_pass` clients at a time, in order.

    It trains one by one if `why_one_by_one` gives a reason, and if a group has a single turn. Like
    that of `local_trainer`, it takes ownership of the model.
    """
    one_by_one = local_trainer(tuned, settings)
    if clients_per_pass == 1 or why_one_by_one(tuned, settings):
        return one_by_one
    setup = _set_up(tuned, settings)

    def train(broadcast: Payload, turns: Sequence[ClientTurn]) -> Iterator[LocalResult]:
        for start in range(0, len(turns), clients_per_pass):
            group = turns[start : start + clients_per_pass]
            if len(group) == 1:
                yield from one_by_one(broadcast, group)
                continue
            tuned.model.eval()
            yield from _train_group(setup, group, broadcast[DELTA].to(settings.device))
            setup.live.values = {}

    return train


def _set_up(tuned: TunedModel, settings: LocalSettings) -> _Setup:
    live, privacy = Live(), settings.privacy
    places = find_places(tuned, live)
    assert not isinstance(places, str), places
    if (last := last_block(tuned.model)) is not None:
        places = [*places, Place(last[0], "forward", last[1])]
    pad_id = getattr(getattr(tuned.loaded.module, "config", None), "pad_token_id", None) or 0
    by_client = stacked_gradients(tuned, settings, live, places)
    if privacy is None or not privacy.by_example:
        return _Setup(tuned, settings, live, by_client, None, pad_id)

    def rows(batch: Batch, keys_B: Tensor) -> Tensor:
        value_BP = read_delta(tuned).repeat(len(keys_B), 1)
        return by_client(value_BP, Pass(batch, keys_B, None)).grad_GP

    by_example = clipped_by_example(by_client, privacy.clip_norm)
    return _Setup(tuned, settings, live, by_example, rows, pad_id)


def _train_group(setup: _Setup, group: Sequence[ClientTurn], start_P: Tensor) -> list[LocalResult]:
    """Train the clients of a group side by side, and return their results in the group's order."""
    settings, active_P = setup.settings, None
    if setup.rows is not None:
        write_delta(setup.tuned, start_P)  # not what another client left there
        active_P = check_turn(setup.tuned, setup.rows, group[0], settings.device)
    num = [num_steps(turn, settings) for turn in group]
    order = sorted(range(len(group)), key=lambda place: -num[place])
    turns = [with_root(settings.privacy, group[place], settings) for place in order]
    feeds = [client_steps(turn, settings) for turn in turns]
    value_KP = start_P.expand(len(group), -1).clone()
    sums_2K = torch.zeros(2, len(group), dtype=torch.float64, device=value_KP.device)
    take, covered = None, [""] * len(group)
    for number in range(1, max(num) + 1):
        at_work = sum(1 for total in num if total >= number)
        steps = [next(feed) for feed in feeds[:at_work]]
        value_AP = value_KP[:at_work]
        found = _step_gradients(setup, value_AP, steps)
        grad_AP = _private(settings, found.grad_GP, turns, number, covered)
        if settings.prox_mu:
            grad_AP.add_(value_AP - start_P, alpha=settings.prox_mu)
        if settings.gradient_clip is not None:
            grad_AP = clipped(grad_AP, settings.gradient_clip)
        take = take or make_step(
            settings.optimizer,
            found.active_P if active_P is None else active_P,
            setup.tuned.spec.shapes,
        )
        take(value_AP, grad_AP, _scale(steps, value_AP))
        last_A = torch.tensor([step.last for step in steps], device=value_KP.device)
        figures_2A = torch.stack([found.loss_G, found.count_G]).double()
        sums_2K[:, :at_work] += torch.where(last_A, figures_2A, 0.0)
    update_KP = (value_KP - start_P).cpu()
    loss_K = (sums_2K[0] / sums_2K[1].clamp(min=1)).tolist()
    rows = sorted(range(len(group)), key=order.__getitem__)
    return [
        LocalResult(
            {DELTA: sent(settings.privacy, update_KP[row].clone())},
            float(len(turns[row].data)),
            {} if setup.rows is not None else {"loss": loss_K[row]},
            kept_root(settings.privacy, turns[row]),
        )
        for row in rows
    ]


def _scale(steps: Sequence[ClientStep], value_AP: Tensor) -> float | Tensor:
    """Return the factor on the learning rate: one number, or one for each client [A, 1]."""
    scales = [step.scale for step in steps]
    return scales[0] if len(set(scales)) == 1 else value_AP.new_tensor(scales).unsqueeze(1)


def _step_gradients(setup: _Setup, value_AP: Tensor, steps: Sequence[ClientStep]) -> PassGradients:
    """Return the gradients of a step of each client, the mean over all predictions of the step."""
    most = max(len(step.batches) for step in steps)
    if most == 1:
        return _joined_gradients(setup, value_AP, [step.batches[0] for step in steps])
    grad_AP, active_P = torch.zeros_like(value_AP), None
    loss_A = count_A = value_AP.new_zeros(len(steps))
    for place in range(most):
        batches = [s.batches[place] if place < len(s.batches) else _NO_BATCH for s in steps]
        found = _joined_gradients(setup, value_AP, batches)
        grad_AP += found.grad_GP * found.count_G.unsqueeze(1)
        loss_A, count_A = loss_A + found.loss_G, count_A + found.count_G
        active_P = found.active_P
    return PassGradients(grad_AP / count_A.clamp(min=1).unsqueeze(1), loss_A, count_A, active_P)


_NO_BATCH = ClientBatch({}, torch.zeros(0, dtype=torch.int64))


def _joined_gradients(
    setup: _Setup, value_AP: Tensor, batches: Sequence[ClientBatch]
) -> PassGradients:
    """Return the gradients of all clients, from several passes if their batch sizes differ much.

    Those of an empty batch are zeros.
    """
    filled = [place for place, batch in enumerate(batches) if len(batch.keys_B)]
    sizes = [len(batches[place].keys_B) for place in filled]
    parts = [[filled[i] for i in part] for part in split_by_size(sizes)]
    if parts == [list(range(len(batches)))]:
        return setup.gradients(value_AP, join(batches, setup.pad_id))
    none_A = value_AP.new_zeros(len(batches))
    grad_AP, loss_A, count_A = torch.zeros_like(value_AP), none_A, none_A.clone()
    active_P = None
    for part in parts:
        found = setup.gradients(
            value_AP[part], join([batches[place] for place in part], setup.pad_id)
        )
        grad_AP[part], loss_A[part], count_A[part] = found.grad_GP, found.loss_G, found.count_G
        active_P = found.active_P
    return PassGradients(grad_AP, loss_A, count_A, active_P)


def _private(
    settings: LocalSettings,
    grad_AP: Tensor,
    turns: Sequence[ClientTurn],
    number: int,
    covered: list[str],
) -> Tensor:
    """Clip and noise each client's gradient, according to the privacy settings.

    `covered` holds the digest of what each client's noise covers; it is brought up to date.
    """
    chosen = settings.privacy
    if chosen is None:
        return grad_AP
    rows = []
    for place, (grad_P, turn) in enumerate(zip(grad_AP, turns, strict=False)):
        row_P, covered[place] = private_step(
            chosen, turn, grad_P, number, settings.batch_size, covered[place]
        )
        rows.append(row_P)
    return torch.stack(rows)
