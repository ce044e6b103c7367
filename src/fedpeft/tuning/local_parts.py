"""Local parts of a delta: they train at each client, stay there, and are in no message.

    tuned.parameters    travel: one flat buffer, averaged        e.g. LoRA's A
    tuned.local         stay: each client keeps its own          e.g. LoRA's B, the head

A client finds its own values again in its memory, exactly once for each committed turn; a client
that was never asked starts from those of the server's model, which never change.

References:
  Collins et al., Exploiting Shared Representations for Personalized Federated Learning, ICML 2021;
  Guo et al., Selective Aggregation for Low-Rank Adaptation in Federated Learning, ICLR 2025.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from fedpeft.core.deltas import DeltaSpec
from fedpeft.core.errors import TuningError
from fedpeft.core.words import nearest
from fedpeft.tuning.tuned import TunedModel

__all__ = ["keep_local"]


def keep_local(tuned: TunedModel, parts: Sequence[str]) -> TunedModel:
    """Return a tuned model of whose delta some parts stay at the clients.

    Args:
      tuned: the model; it goes on to be used through what is returned only.
      parts: canonical names, or the beginnings of them that end at a dot: `head` stands for
        `head.weight` and `head.bias`.

    Raises:
      TuningError: if a part names nothing of the delta, or nothing would be left to send.
    """
    names = {name for part in parts for name in tuned.spec.names if _is_under(name, part)}
    for part in parts:
        if not any(_is_under(name, part) for name in tuned.spec.names):
            raise TuningError(
                f"local part {part!r}: the delta has nothing of that name; "
                f"{nearest(part, tuned.spec.names)}"
            )
    sent = {name: p for name, p in tuned.parameters.items() if name not in names}
    if not sent:
        raise TuningError("local parts: nothing would be left to send; name fewer of them")
    kept = {name: p for name, p in tuned.parameters.items() if name in names}
    return dataclasses.replace(
        tuned,
        spec=DeltaSpec.of(sent),
        parameters=sent,
        local_spec=DeltaSpec.of(kept),
        local=kept,
        unrecorded="parts of its delta stay at the clients, which no key of a file says",
    )


def _is_under(name: str, part: str) -> bool:
    return name == part or name.startswith(f"{part}.")
