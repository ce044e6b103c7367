"""The gate: what a client sends becomes a checked update, or a failure of that client.

Reply bytes ──decode──> tensors ──stages, reversed──> payload ──check──> ClientUpdate
                              any of it goes wrong: a reason in the record, no update
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import torch

from fedpeft.client.turns import BUFFERS, DELTA, Payload
from fedpeft.core.errors import DeltaMismatchError, RoundError
from fedpeft.rounds.job import Failure, Reply
from fedpeft.rounds.round_plan import RoundPlan, server_turn
from fedpeft.server.state import ClientUpdate, RoundContext
from fedpeft.wire import messages
from fedpeft.wire.stages import decode_all

__all__ = ["Tally", "decode_reply", "usable_updates"]


@dataclass
class Tally:
    """Running totals over the replies of a round."""

    failures: dict[str, str] = field(default_factory=dict)
    answered: list[str] = field(default_factory=list)
    bytes_up: int = 0
    figures: dict[str, dict[str, float]] = field(default_factory=dict)
    weights: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)

    def add(self, update: ClientUpdate, notes: Mapping[str, str], norm: float) -> None:
        """Count one checked update, with the figures that its client reports."""
        self.answered.append(update.client)
        self.weights.append(update.weight)
        self.norms.append(norm)
        self.figures[update.client] = {
            key.removeprefix("metric."): float(value)
            for key, value in notes.items()
            if key.startswith("metric.")
        }

    def means(self) -> dict[str, float]:
        """Return the weighted means of the clients' own metrics."""
        total, sums = 0.0, dict[str, float]()
        for weight, figures in zip(self.weights, self.figures.values(), strict=True):
            total += weight
            for name, value in figures.items():
                sums[f"train_{name}"] = sums.get(f"train_{name}", 0.0) + value * weight
        return {name: value / total for name, value in sums.items() if total}


def usable_updates(
    answers: Iterable[Reply | Failure], plan: RoundPlan, context: RoundContext, tally: Tally
) -> Iterator[ClientUpdate]:
    """Decode and check answers one by one; unusable ones are counted as failures.

    Raises:
      RoundError: after the last answer, if too few were usable.
    """
    for answer in answers:
        if isinstance(answer, Failure):
            tally.failures[answer.client] = answer.reason
            continue
        tally.bytes_up += len(answer.blob)
        try:
            update, notes, norm = decode_reply(answer, plan, context)
        except (DeltaMismatchError, ValueError, LookupError, RuntimeError) as error:
            tally.failures[answer.client] = f"reply refused: {error}"
            continue
        tally.add(update, notes, norm)
        yield update
    if len(tally.answered) < plan.min_replies:
        reasons = "; ".join(f"{c}: {r}" for c, r in list(tally.failures.items())[:3])
        raise RoundError(
            f"round {context.round}: {len(tally.answered)} of {len(context.cohort)} clients gave a "
            f"usable update, at least {plan.min_replies} are needed (federation.min_replies). "
            f"First reasons: {reasons or 'none'}"
        )


def decode_reply(
    reply: Reply, plan: RoundPlan, context: RoundContext
) -> tuple[ClientUpdate, dict[str, str], float]:
    """Decode and check a reply; return the update, the notes and the update's L2 norm."""
    tensors, notes = messages.decode(reply.blob)
    payload: Payload = tensors
    if plan.up:
        payload = decode_all(plan.up, tensors, server_turn(context, reply.client))
    spec = plan.spec_of(reply.client)
    spec.check_flat(payload[DELTA])
    if plan.buffer_spec.names:
        plan.buffer_spec.check_flat(payload[BUFFERS])
    norms = {name: float(torch.linalg.vector_norm(tensor)) for name, tensor in payload.items()}
    for name, norm in norms.items():
        # a finite norm shows that all numbers are finite; an infinite one may be an overflow
        if not math.isfinite(norm) and not bool(torch.isfinite(payload[name]).all()):
            raise ValueError(
                f"{name} has numbers that are not finite (training diverged: lower client.lr)"
            )
    weight = float(notes.get("weight", "1"))
    if not 0 < weight < float("inf"):
        raise ValueError(f"weight is {weight}; allowed is a finite number above 0")
    return ClientUpdate(reply.client, payload, weight, spec), notes, norms[DELTA]
