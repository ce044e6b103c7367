"""The form of a message: which tensors it holds, of which types and shapes, at each of its stages.

    steps[0]  delta, buffers  ──stage 0──>  steps[1]  ──stage 1──>  ...  steps[-1]  the message

It follows from the delta's spec and the stages alone, so it is known before a message comes: the
receiver compares what it got before it decodes, and after each stage. No number is computed.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from fedpeft.client.turns import BUFFERS, DELTA, ClientTurn, Payload
from fedpeft.core.deltas import DeltaSpec, dtype_name
from fedpeft.core.errors import DeltaMismatchError
from fedpeft.data.examples import NO_DATA
from fedpeft.wire.messages import LONGEST_HEADER, encoded_size
from fedpeft.wire.stages import Stage

_SLACK = 4096
_LOOSE = 2**20


@dataclass(frozen=True)
class Form:
    """The exact tensors of a message before, between and after its stages.

    Attributes:
      stages: the stages, in the order in which they encode.
      steps: the payload before the first stage, then the one after each; tensors are on the `meta`
        device. None where a stage's output depends on the numbers that it gets.
    """

    stages: tuple[Stage, ...]
    steps: tuple[Payload | None, ...]

    @functools.cached_property
    def dense_bytes(self) -> int:
        """Bytes of the payload before the first stage."""
        assert self.steps[0] is not None
        return _data_bytes(self.steps[0])

    @functools.cached_property
    def max_header(self) -> int:
        """Largest header of such a message, in bytes: twice that of an honest one, and some."""
        sent = self.steps[-1]
        if sent is None:
            return LONGEST_HEADER
        return 2 * (encoded_size(sent) - _data_bytes(sent)) + _SLACK

    @functools.cached_property
    def max_bytes(self) -> int:
        """Largest size of such a message, in bytes."""
        sent = self.steps[-1]
        data = 4 * self.dense_bytes + _LOOSE if sent is None else _data_bytes(sent)
        return 8 + self.max_header + data


def form_of(stages: Sequence[Stage], spec: DeltaSpec, buffer_spec: DeltaSpec | None = None) -> Form:
    """Return the form of messages in one direction.

    Args:
      stages: the stages of that direction, in order.
      spec: spec of the delta.
      buffer_spec: spec of the buffers that are sent; None and an empty one: none are.
    """
    return _form(tuple(stages), spec, buffer_spec)


@functools.lru_cache(maxsize=32)
def _form(stages: tuple[Stage, ...], spec: DeltaSpec, buffer_spec: DeltaSpec | None) -> Form:
    dense: dict[str, Tensor] = {DELTA: _meta(spec.dtype, (spec.num_params,))}
    if buffer_spec is not None and buffer_spec.names:
        dense[BUFFERS] = _meta(buffer_spec.dtype, (buffer_spec.num_params,))
    steps: list[Payload | None] = [dense]
    for stage in stages:
        before = steps[-1]
        steps.append(None if before is None else _after(stage, before, spec))
    return Form(stages, tuple(steps))


def _meta(dtype: torch.dtype, shape: Sequence[int]) -> Tensor:
    return torch.empty(tuple(shape), dtype=dtype, device="meta")


def _data_bytes(payload: Payload) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in payload.values())


def _after(stage: Stage, before: Payload, spec: DeltaSpec) -> Payload | None:
    """Return what a stage makes of a payload; None if that depends on the payload's numbers."""
    if stage.keeps_shapes:
        return before
    turn = ClientTurn(1, "client", NO_DATA, {}, seed=1, version=0)
    try:
        with FakeTensorMode():  # types and shapes are followed, no number is computed
            payload = {n: torch.empty(tuple(t.shape), dtype=t.dtype) for n, t in before.items()}
            encoded, _ = stage.encode(payload, stage.init(spec), turn)
            found = {n: (t.dtype, tuple(map(int, t.shape))) for n, t in encoded.items()}
    except Exception:  # a stage from outside may do anything with numbers that are not there
        return None
    return {name: _meta(*each) for name, each in found.items()}


def decode_exactly(form: Form, payload: Payload, turn: ClientTurn) -> Payload:
    """Run the server halves of a message's stages, in reversed order, and check each result.

    Each stage is told in `turn.expected` what it must give back.

    Raises:
      DeltaMismatchError: if a payload has not the tensors, types and shapes of its step.
    """
    _check(payload, form.steps[-1], "the message")
    for i, stage in reversed(list(enumerate(form.stages))):
        expected = form.steps[i]
        payload = stage.decode(payload, dataclasses.replace(turn, expected=expected or {}))
        _check(payload, expected, f"after stage {stage.name}")
    return payload


def _check(payload: Payload, expected: Payload | None, where: str) -> None:
    if expected is not None:
        check_payload(payload, expected, where)


def check_payload(payload: Payload, expected: Mapping[str, Tensor], where: str) -> None:
    """Compare a payload with the tensors that are expected: names, types and shapes.

    Raises:
      DeltaMismatchError: naming the first difference.
    """
    if payload.keys() != expected.keys():
        found = ", ".join(map(repr, sorted(payload)[:5])) or "none"
        raise DeltaMismatchError(
            f"{where}: found tensors {found}; expected {', '.join(map(repr, sorted(expected)))}"
        )
    for name, tensor in expected.items():
        one, other = _described(payload[name]), _described(tensor)
        if one != other:
            raise DeltaMismatchError(
                f"{where}: flat {name}: found {one}, expected {other}. Both sides must use the "
                "same model, tuning method, stages and options"
            )


def _described(tensor: Tensor) -> str:
    return f"{dtype_name(tensor.dtype)}{list(tensor.shape)}"
