"""The size of a message in bytes, from shapes alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fedpeft.core.errors import ConfigError
from fedpeft.rounds.client_half import reply_notes
from fedpeft.tuning.tuned import TunedModel
from fedpeft.wire.forms import form_of
from fedpeft.wire.messages import encoded_size
from fedpeft.wire.stages import Stage

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

    Raises:
      ConfigError: if a stage's output depends on the numbers that it gets.
    """
    form = form_of(stages, tuned.spec, tuned.buffer_spec)
    sent = form.steps[-1]
    if sent is None:
        name = stages[form.steps.index(None) - 1].name
        raise ConfigError(
            f"stage {name!r}: the size of its messages is data-dependent; its encode must give "
            "types and shapes that are known before training"
        )
    return encoded_size(sent, notes)
