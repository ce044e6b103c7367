"""The gate: whatever comes from elsewhere is checked here, by one function, before it is used.

    reply bytes ──size──> decode ──form──> stages, reversed ──form──> numbers, weight, metrics
                                                                            │
    anything wrong, of any kind: a failure of its sender, in words          └──> a checked update

Sizes follow from the delta's spec and the stages, and are compared before memory is taken. The same
steps open a broadcast at a client or a site, which refuses it by an error instead.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fedpeft.client.turns import DELTA, ClientTurn, Payload
from fedpeft.core.errors import DeltaMismatchError, RoundError
from fedpeft.core.text import plain
from fedpeft.rounds.finite import LARGEST, magnitude
from fedpeft.rounds.job import Failure, Reply
from fedpeft.rounds.round_plan import RoundPlan, server_turn
from fedpeft.server.state import ClientUpdate, RoundContext
from fedpeft.server.weights import capped
from fedpeft.wire import messages
from fedpeft.wire.forms import Form, decode_exactly, form_of

_LARGEST_METRIC = 1e12
_NUMBER = re.compile(r"[+-]?[0-9]{1,20}(\.[0-9]{1,20})?(e[+-]?[0-9]{1,3})?", re.ASCII)


@dataclass(frozen=True)
class Checked:
    """A reply that passed the gate.

    Attributes:
      update: the decoded update.
      metrics: the client's own figures, of those that the run asked for.
      norm: L2 norm of the update.
    """

    update: ClientUpdate
    metrics: Mapping[str, float]
    norm: float


@dataclass
class Tally:
    """Running totals over the replies of a round; what is refused was sent, and counts as that."""

    failures: dict[str, str] = field(default_factory=dict)
    answered: list[str] = field(default_factory=list)
    unreached: list[str] = field(default_factory=list)
    bytes_up: int = 0
    messages_up: int = 0
    figures: dict[str, Mapping[str, float]] = field(default_factory=dict)
    weights: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)

    def add(self, checked: Checked) -> None:
        """Count one checked update, with the figures that its client reports."""
        self.answered.append(checked.update.client)
        self.weights.append(checked.update.weight)
        self.norms.append(checked.norm)
        self.figures[checked.update.client] = checked.metrics

    def means(self) -> dict[str, float]:
        """Return the weighted means of the clients' own metrics."""
        totals, sums = dict[str, float](), dict[str, float]()
        for weight, figures in zip(self.weights, self.figures.values(), strict=True):
            for name, value in figures.items():
                totals[name] = totals.get(name, 0.0) + weight
                sums[name] = sums.get(name, 0.0) + value * weight
        return {f"train_{name}": value / totals[name] for name, value in sums.items()}


def usable_updates(
    answers: Iterable[Reply | Failure], plan: RoundPlan, context: RoundContext, tally: Tally
) -> Iterator[ClientUpdate]:
    """Check answers one by one; unusable ones are counted as failures.

    Raises:
      RoundError: after the last answer, if too few were usable.
    """
    for checked in _shared(_each(answers, plan, context, tally), plan.weights.max_share):
        tally.add(checked)
        yield checked.update
    if len(tally.answered) < plan.min_replies:
        reasons = "; ".join(f"{c}: {r}" for c, r in list(tally.failures.items())[:3])
        raise RoundError(
            f"round {context.round}: {len(tally.answered)} of {len(context.cohort)} clients gave a "
            f"usable update, at least {plan.min_replies} are needed (federation.min_replies). "
            f"First reasons: {reasons or 'none'}"
        )


def _each(
    answers: Iterable[Reply | Failure], plan: RoundPlan, context: RoundContext, tally: Tally
) -> Iterator[Checked]:
    for answer in answers:
        if isinstance(answer, Reply):
            tally.bytes_up += len(answer.blob)
            tally.messages_up += 1
        elif not answer.reached:
            tally.unreached.append(answer.client)
        checked = check_reply(answer, plan, context) if isinstance(answer, Reply) else answer
        if isinstance(checked, Failure):
            tally.failures[checked.client] = plain(checked.reason)
        else:
            yield checked


def _shared(replies: Iterable[Checked], max_share: float) -> Iterable[Checked]:
    """Lower weights that are more than a share of the round's sum, which needs all replies first.

    Without a bound replies pass one by one.
    """
    if max_share >= 1:
        return replies
    held = list(replies)
    weights = capped([each.update.weight for each in held], max_share)
    return [
        dataclasses.replace(each, update=dataclasses.replace(each.update, weight=weight))
        for each, weight in zip(held, weights, strict=True)
    ]


def check_reply(reply: Reply, plan: RoundPlan, context: RoundContext) -> Checked | Failure:
    """Decode and check a reply; whatever is wrong with it makes it a failure of its client.

    Args:
      reply: the reply; its bytes may be anything.
      plan: the plan of the run.
      context: the round.
    """
    try:
        return _checked(reply, plan, context)
    except Exception as error:  # nothing that a client sends may end a round
        reason = str(error) if isinstance(error, DeltaMismatchError | ValueError) else repr(error)
        return Failure(reply.client, f"reply refused: {plain(reason, 400)}")


def _checked(reply: Reply, plan: RoundPlan, context: RoundContext) -> Checked:
    spec = plan.spec_of(reply.client)
    turn = server_turn(context, reply.client)
    form = form_of(plan.up, spec, plan.buffer_spec)
    payload, notes = open_message(reply.blob, form, turn, advice=_DIVERGED)
    weight = plan.weights.of(reply.client, _number("weight", notes.pop("weight", "1")))
    metrics = {name: _metric(name, notes.pop(f"metric.{name}", None)) for name in plan.metrics}
    if notes:
        names = ", ".join(sorted(notes)[:3])
        raise ValueError(f"it holds notes that this run did not ask for: {plain(names, 100)}")
    given = {name: value for name, value in metrics.items() if value is not None}
    norm = float(torch.linalg.vector_norm(payload[DELTA]))
    return Checked(ClientUpdate(reply.client, payload, weight, spec), given, norm)


_DIVERGED = "training diverged: lower client.lr"


def open_message(
    blob: bytes, form: Form, turn: ClientTurn, *, advice: str = "it was not sent whole"
) -> tuple[Payload, dict[str, str]]:
    """Decode a message whose form is known, and check every tensor in it.

    Args:
      blob: the message, which may be anything.
      form: the tensors that it must hold, and its stages.
      turn: the turn, for the stages.
      advice: why numbers may be out of range, and what to do.

    Returns:
      the payload: exactly the tensors of the form's first step, of its types and shapes, each
      number finite and at most 1e15 in magnitude; and the notes.

    Raises:
      DeltaMismatchError, ValueError: saying what is wrong; a stage may raise anything else.
    """
    if len(blob) > form.max_bytes:
        raise DeltaMismatchError(
            f"message of {len(blob)} bytes; allowed are at most {form.max_bytes} for this delta"
        )
    tensors, notes = messages.decode(blob, most_header=form.max_header)
    payload = decode_exactly(form, tensors, turn)
    for name, tensor in payload.items():
        _check_numbers(name, tensor, advice)
    return payload, notes


def _check_numbers(name: str, tensor: Tensor, advice: str) -> None:
    """Check that all numbers of a tensor are finite and within bounds.

    Raises:
      ValueError: if one is not.
    """
    largest = magnitude(tensor)
    if not largest < float("inf"):
        raise ValueError(f"{name} has numbers that are not finite ({advice})")
    if largest > LARGEST:
        raise ValueError(
            f"{name} has numbers up to {largest:.3g}; allowed is {LARGEST:g} ({advice})"
        )


def _metric(name: str, text: str | None) -> float | None:
    """Read a figure; None where the client does not report it.

    Raises:
      ValueError: if it is no finite number, or out of range.
    """
    if text is None:
        return None
    value = _number(name, text)
    if not abs(value) <= _LARGEST_METRIC:
        raise ValueError(
            f"{name} is {value:g}; allowed is at most {_LARGEST_METRIC:g} ({_DIVERGED})"
        )
    return value


def _number(name: str, text: str) -> float:
    if len(text) > 48 or not _NUMBER.fullmatch(text):
        raise ValueError(f"{name} is {plain(text, 40)}; allowed is a finite number")
    return float(text)
