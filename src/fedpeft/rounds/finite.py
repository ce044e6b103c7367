"""Nothing that is not finite is committed: the state after a round is checked before it is kept.

    combine ──update──> finish (stages) ──update──> apply (server's options) ──> new state
            finite?                      finite?                             finite, within bounds?

Each client's update was finite when it passed the gate, so what is not finite here was made by the
server; the error says by which part, and what to change.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from fedpeft.core.errors import NotFiniteError
from fedpeft.server.state import ServerState, Update
from fedpeft.wire.stages import Stage

LARGEST = 1e15
"""Largest magnitude of a number in a delta: squares and sums of such numbers fit into float32."""

_NOT_OF_THE_MODEL = ("sampler.", "clock.", "flight.")


def magnitude(tensor: Tensor) -> float:
    """Return the largest magnitude in a tensor; NaN if one of its numbers is NaN."""
    if not tensor.numel():
        return 0.0
    low, high = map(float, torch.aminmax(tensor))  # both are NaN where any number is
    return max(-low, high)


def check_combined(update: Update, number: int) -> None:
    """Check what an algorithm's `combine` made of finite updates.

    Raises:
      NotFiniteError: if it is not finite.
    """
    if not _finite([update.delta, update.buffers]):
        raise _refused(
            number,
            "federation.algorithm made a combined update that is not finite of clients' updates "
            "that were; its rule divides by zero or overflows. Use another algorithm",
        )


def check_finished(update: Update, number: int, stages: Iterable[Stage]) -> None:
    """Check what the stages' server halves made of a finite update.

    Raises:
      NotFiniteError: if it is not finite.
    """
    if not _finite([update.delta, update.buffers]):
        names = ", ".join(stage.name for stage in stages)
        raise _refused(
            number,
            f"the server's stages ({names}) made an update that is not finite of one that was. "
            "Lower privacy.clip_norm or the noise, or leave a stage out of wire.up",
        )


def check_state(state: ServerState, number: int) -> None:
    """Check the state that a round leaves: delta, buffers, and memory of algorithm and stages.

    Raises:
      NotFiniteError: if a number is not finite, or one of the delta is out of range.
    """
    kept = [
        tensor
        for name, tensor in state.memory.items()
        if tensor.is_floating_point() and not name.startswith(_NOT_OF_THE_MODEL)
    ]
    largest = magnitude(state.delta)
    if _finite([state.buffers, *kept]) and largest <= LARGEST:
        return
    raise _refused(
        number,
        "the server's step made a state that is not finite of a finite update (largest number of "
        f"the delta: {largest:.3g}, allowed are {LARGEST:g}). Lower federation.options.lr, or look "
        "at the other federation.options",
    )


def _finite(tensors: Iterable[Tensor]) -> bool:
    return all(magnitude(tensor) < float("inf") for tensor in tensors)


def _refused(number: int, problem: str) -> NotFiniteError:
    good = f"round {number - 1}" if number > 1 else "the start"
    return NotFiniteError(
        f"round {number}: {problem}. Nothing of this round was kept; the last good state is "
        f"that of {good}"
    )
