"""Local parts of a delta: each client trains its own, and no message contains them.

    tuned.parameters    sent and averaged, in one flat buffer    e.g. LoRA's A
    tuned.local         kept: each client has its own values     e.g. LoRA's B, the head

A client's values are kept in its memory and updated exactly once for each committed turn. A client
that has not trained yet starts from the values of the server's model, which never change.

References:
  Collins et al., Exploiting Shared Representations for Personalized Federated Learning, ICML 2021;
  Guo et al., Selective Aggregation for Low-Rank Adaptation in Federated Learning, ICLR 2025.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from fedpeft.core.deltas import DeltaSpec
from fedpeft.core.errors import TuningError
from fedpeft.core.text import nearest
from fedpeft.tuning.tuned import TunedModel


def keep_local(tuned: TunedModel, parts: Sequence[str]) -> TunedModel:
    """Return a tuned model in which some parts of the delta stay at the clients.

    Args:
      tuned: the model; use only the returned one afterwards.
      parts: canonical names, or their beginnings up to a dot: `head` stands for `head.weight` and
        `head.bias`.

    Raises:
      TuningError: if a part matches nothing in the delta, or nothing would be left to send.
    """
    names: set[str] = set()
    for part in parts:
        matched = {name for name in tuned.spec.names if f"{name}.".startswith(f"{part}.")}
        names |= matched
        if not matched:
            raise TuningError(
                f"local part {part!r}: the delta has no parameter of that name; "
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
        unrecorded="parts of its delta stay at the clients, for which no key exists",
    )
