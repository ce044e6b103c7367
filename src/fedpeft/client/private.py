"""Private local training: clipped and noised gradients instead of a batch's mean gradient.

    example     (sum_i clip(g_i, C) + N(0, (zC)^2)) / B      g_i: the gradient of example i alone
    author      mean gradient + N(0, s^2)                    the paper's code: no clip, no guarantee
    corrected   clip(mean gradient, C) + N(0, s^2) / B       its corrected formula: no guarantee

B is the configured batch size, a constant: a smaller batch is divided by it too. The noise of
`example` comes from a secret root of 32 bytes, which each client draws in its first turn and keeps
in its memory. It is keyed by a digest of all that the noised sum depends on: a step that is
repeated gets the same noise for the same sum, and other noise for another one, so that the
difference of two releases is never free of noise.

An example whose gradient is not finite counts as zeros, without a word: that a loss overflows would
tell that the client holds the example.

References:
  Abadi et al., Deep Learning with Differential Privacy, CCS 2016 (`example`, Poisson batches).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from fedpeft.client.batches import Rows, batches, dropout_keys, take_batch, to_device
from fedpeft.client.flat import active_mask
from fedpeft.client.masks import can_batch_text, with_spread_mask
from fedpeft.client.turns import ClientTurn, Memory
from fedpeft.core.errors import PrivacyError
from fedpeft.core.noise import bounded, clip, draw_root, gaussian, seeded_root, uniform
from fedpeft.models.tasks import Batch, mean_loss
from fedpeft.tuning.methods import METHODS
from fedpeft.tuning.tuned import TunedModel

_ROOT = "gradient.root"
_COVERED = "gradient.covered"
_CHUNK_BYTES = 256 * 2**20
_MOST_ROWS = 1024
_TOLERANCE = 1e-3
_TOKENS = 8

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
      rate: probability, in (0, 1], with which each example is in a step's batch, by a secret coin
        of its own (Poisson sampling); None: batches are the parts of a shuffled epoch.
      steps: with `rate`, the number of steps of an epoch, >= 1, whatever the client holds.
    """

    clip_norm: float
    deviation: float
    by_example: bool = False
    divided: bool = True
    secret: bool = False
    rate: float | None = None
    steps: int = 0


def with_root(
    chosen: GradientPrivacy | None, turn: ClientTurn, settings: object = None
) -> ClientTurn:
    """Return the turn with the root [32] of its noise in its memory.

    With `secret`, a client draws the root in its first turn; `kept_root` returns what its memory
    must keep. Beside it stands a digest of what the turn's noise covers before the first step.

    Args:
      chosen: the mechanism.
      turn: of the client.
      settings: of local training; everything in its `repr` is covered.
    """
    if chosen is None:
        return turn
    if not chosen.secret:
        root = seeded_root(turn.seed)
    elif _ROOT in turn.memory:
        root = turn.memory[_ROOT]
    else:
        root = draw_root()
    parts = (settings, turn.round, turn.client, turn.seed, turn.version, turn.origin)
    digest = hashlib.sha256(repr(parts).encode() + turn.data.indices.tobytes()).digest()
    covered = torch.frombuffer(bytearray(digest), dtype=torch.uint8)
    return replace(turn, memory={**turn.memory, _ROOT: root, _COVERED: covered})


def kept_root(chosen: GradientPrivacy | None, turn: ClientTurn) -> Memory:
    """Return what a client keeps of a turn `with_root` for its next turn: its secret, if any."""
    return {_ROOT: turn.memory[_ROOT]} if chosen is not None and chosen.secret else {}


def turn_batches(
    chosen: GradientPrivacy | None,
    turn: ClientTurn,
    batch_size: int,
    epoch: int,
    whole_batches: bool = False,
    by_length: bool = False,
) -> list[Rows]:
    """Return the batches of one epoch (from 0) of a turn `with_root`, as positions in its data.

    With `rate` they may be empty or larger than `batch_size`; else see `batches`.
    """
    if chosen is None or chosen.rate is None:
        return batches(turn, batch_size, epoch, whole_batches, by_length)
    path: tuple[str | int, ...] = ("batch", turn.round, epoch, *_key(chosen, _start(turn)))
    draws = (uniform(turn.memory[_ROOT], len(turn.data), *path, i) for i in range(chosen.steps))
    return [np.flatnonzero(coins < chosen.rate) for coins in draws]


def covering(chosen: GradientPrivacy, turn: ClientTurn, before: str, grad_P: Tensor) -> str:
    """Return the digest of all that the noise of a step covers.

    Args:
      chosen: the mechanism; noise from a known seed covers nothing, and "" is returned.
      turn: a turn `with_root`.
      before: digest of the step before; "" at the first.
      grad_P: what is noised. Earlier ones are part of `before`, and the values of this step
        follow from them.
    """
    if not chosen.secret:
        return ""
    digest = hashlib.sha256((before or _start(turn)).encode())
    digest.update(grad_P.detach().cpu().contiguous().numpy().data)
    return digest.hexdigest()


def draw(
    chosen: GradientPrivacy, turn: ClientTurn, count: int, step: int, covered: str = ""
) -> Tensor:
    """Draw the noise [count] of one step (from 1) of a turn `with_root`.

    Args:
      chosen: the mechanism.
      turn: of the client.
      count: number of coordinates.
      step: number of the step.
      covered: digest from `covering`.
    """
    path: tuple[str | int, ...] = ("gradient", turn.round, step, *_key(chosen, covered))
    return gaussian(turn.memory[_ROOT], count, chosen.deviation, *path)


def _key(chosen: GradientPrivacy, covered: str) -> tuple[str, ...]:
    """Return what keys a draw beside its place: nothing where it must follow from the seed."""
    return (covered,) if chosen.secret else ()


def _start(turn: ClientTurn) -> str:
    """Return the digest of what the noise of a turn covers before its first step."""
    return bytes(turn.memory[_COVERED].tolist()).hex()


def sent(chosen: GradientPrivacy | None, update_P: Tensor) -> Tensor:
    """Return a client's update as it is sent: zeros for a private one that is not finite."""
    private = chosen is not None and chosen.by_example
    return bounded(update_P, float("inf")) if private else update_P


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


def private_step(
    chosen: GradientPrivacy,
    turn: ClientTurn,
    grad_P: Tensor,
    step: int,
    batch_size: int,
    before: str,
) -> tuple[Tensor, str]:
    """Return the noised gradient [P] of one step, and the digest of what its noise covers.

    Args:
      chosen: the mechanism.
      turn: a turn `with_root`.
      grad_P: as `noised` takes it.
      step: number of the step, from 1.
      batch_size: B, a constant of the run.
      before: the digest that the step before returned; "" at the first.
    """
    covered = covering(chosen, turn, before, grad_P)
    noise_P = draw(chosen, turn, len(grad_P), step, covered)
    return noised(chosen, grad_P, batch_size, noise_P), covered


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
        chunk = rows_at_once(tuned.spec.num_params)
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


def rows_at_once(num_params: int) -> int:
    """Return how many examples' gradients are held at once, for P parameters."""
    return max(1, min(_MOST_ROWS, _CHUNK_BYTES // max(1, 4 * num_params)))


def check_turn(
    tuned: TunedModel, gradients: RowGradients, turn: ClientTurn, device: str
) -> Tensor | None:
    """Check the per-example gradients before a turn, by the shapes of its first example.

    Returns:
      as `check_rows`; None for a client of a table without examples.
    """
    table, own = turn.data.examples, turn.data.indices
    if len(own):
        example = take_batch(turn, np.zeros(1, np.int64), 0, device)
    elif len(table):
        example = to_device(table.batch([0], seed=None), device)
    else:
        return None
    keys_B = dropout_keys(turn, np.arange(2), 1).to(device)
    return check_rows(tuned, gradients, example, keys_B)


def check_rows(tuned: TunedModel, gradients: RowGradients, batch: Batch, keys_B: Tensor) -> Tensor:
    """Compare per-example gradients with one-by-one gradients on two made-up examples.

    Nothing but the shapes of `batch` is used, and a text's length is not: an answer that depended
    on the data, or an error that named a figure of it, would leave the client without noise.

    Args:
      tuned: the model.
      gradients: to check.
      batch: one example or more.
      keys_B: dropout keys; two are used.

    Returns:
      1 for a parameter that affects the loss, else 0; [P].

    Raises:
      PrivacyError: if they differ, or one example's gradient depends on the other.
    """
    two = stand_in(batch)
    expected_BP, active_P = one_by_one(tuned, two, keys_B[:2])
    found_BP = gradients(two, keys_B[:2])
    usable_B = torch.isfinite(expected_BP).all(1)  # a model that has diverged proves nothing
    if not usable_B.any():
        return active_P
    expected_BP, found_BP = expected_BP[usable_B], found_BP[usable_B]
    scale = float(expected_BP.abs().max()) + 1e-12
    if not float((found_BP - expected_BP).abs().max()) <= _TOLERANCE * scale:
        raise PrivacyError(
            f"privacy.mode = 'example' with {tuned.method}: per-example gradients differ from "
            f"one-by-one gradients by more than {_TOLERANCE:g} of the largest, "
            "and a clip of wrong gradients bounds nothing. Use mode 'central' or another method"
        )
    return active_P


def stand_in(batch: Batch) -> Batch:
    """Make two examples that say nothing of a batch but its shapes: random numbers, tokens 0 and 1.

    A text gets eight tokens, of which the last three of the second example are padding.
    """
    generator = torch.Generator().manual_seed(0)
    texts = [batch[name] for name in ("attention_mask", "input_ids") if name in batch]
    length = texts[0].shape[1] if texts else -1

    def made(name: str, value: Tensor) -> Tensor:
        shape = list(value.shape[1:])
        of_tokens = name != "labels" or not value.is_floating_point()
        if texts and shape and shape[0] == length and of_tokens:
            shape[0] = _TOKENS
        if value.is_floating_point():
            return torch.randn(2, *shape, generator=generator).to(value)
        if name == "attention_mask":
            mask = torch.ones(2, *shape)
            mask[1, _TOKENS - 3 :] = 0
            return mask.to(value)
        if name == "labels" or not shape:  # the first class, whatever number of them there is
            return torch.zeros(2, *shape).to(value)
        place = torch.arange(int(np.prod(shape))).view(shape)
        return torch.stack([place & 1, (place >> 1) + 1 & 1]).to(value)

    return {name: made(name, value) for name, value in batch.items()}


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
