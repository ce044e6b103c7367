"""The size of a message in bytes, from shapes alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from fedpeft.client.turns import BUFFERS, DELTA, ClientTurn, Payload
from fedpeft.data.examples import NO_DATA
from fedpeft.rounds.client_half import reply_notes
from fedpeft.tuning.tuned import TunedModel
from fedpeft.wire.messages import encoded_size
from fedpeft.wire.stages import Stage, encode_all, start_memory

__all__ = ["TYPICAL_NOTES", "wire_bytes"]


TYPICAL_NOTES: Mapping[str, str] = reply_notes(1.0, {"loss": 0.0})
"""The notes of a reply; their length is the same in every reply."""


def wire_bytes(
    tuned: TunedModel, stages: Sequence[Stage], notes: Mapping[str, str] | None = None
) -> int:
    """Count the bytes of one message, as encoded, after stages.

    Args:
      tuned: the tuned model, whose shapes are used; may be on the `meta` device.
      stages: the stages of one direction, in order.
      notes: the notes of the message.
    """
    with FakeTensorMode():  # shapes and types are followed, no number is computed
        payload: dict[str, Tensor] = {DELTA: torch.empty(tuned.spec.num_params)}
        if tuned.buffer_spec.names:
            payload[BUFFERS] = torch.empty(tuned.buffer_spec.num_params)
        memory = start_memory(stages, tuned.spec)
        turn = ClientTurn(1, "client", NO_DATA, {}, seed=1, version=0)
        encoded: Payload = encode_all(stages, payload, memory, turn)[0]
    return encoded_size(encoded, notes)
