"""A Flower grid in this process: real messages, clients of points, and faults by name."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import support
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from fedpeft.client.turns import ClientTurn
from fedpeft.data.examples import ClientData, Federated
from fedpeft.engines.flower.engine import FlowerEngine, FlowerSettings, reply_limit
from fedpeft.engines.flower.messages import read_request, write_answer
from fedpeft.engines.flower.requests import Answer, Request
from fedpeft.rounds.client_half import run_turn
from fedpeft.wire import messages

Replies = Callable[[Message, RecordDict], list[Any]]
"""From a request and its honest reply to what comes back instead."""


class FakeGrid:
    """Answers at the first look, in the opposite order of asking.

    Args:
      data: of all clients.
      up: name of the stages.
      faults: client -> what it does instead of answering, from round `since` on.
      since: first round with faults.
    """

    def __init__(
        self, data: Federated, *, up: str = "none", faults: dict[str, Replies] | None = None,
        since: int = 1,
    ) -> None:  # fmt: skip
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 2, 1
        self.data = data
        self.half = support.make_half(up, support.settings(), False)
        self.faults = faults or {}
        self.since = since
        self.numbers = itertools.count(1)
        self.inbox: dict[str, list[Any]] = {}
        self.pushed: list[Request] = []
        self.under_way = 0
        self.most_under_way = 0

    def get_node_ids(self) -> Sequence[int]:
        return [10 + place for place in range(len(self.data.clients))]

    def push_messages(self, pushed: Sequence[Message]) -> list[str]:
        return [self._take(message) for message in pushed]

    def pull_messages(self, numbers: Sequence[str]) -> list[Any]:
        (number,) = numbers
        found = self.inbox.get(number, [])
        self.inbox[number] = []
        self.under_way -= bool(found)
        for item in found:
            if isinstance(item, Exception):
                raise item
        return found

    def _take(self, message: Message) -> str:
        number = str(next(self.numbers))
        message.metadata.__dict__["_message_id"] = number
        request, memory = read_request(message.content)
        self.pushed.append(request)
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        honest = write_answer(*self.take(request, memory))
        fault = self.faults.get(request.client)
        if fault is None or request.round < self.since:
            self.inbox[number] = [Message(honest, reply_to=message)]
        else:
            self.inbox[number] = fault(message, honest)
        return number

    def take(self, request: Request, memory: bytes) -> tuple[Answer, bytes]:
        data = ClientData(self.data.train, self.data.clients[request.client])
        kept = messages.decode(memory)[0] if memory else {}
        turn = ClientTurn(request.round, request.client, data, kept, request.seed, request.version)
        blob, after = run_turn(self.half, request.blob, turn)
        answer = Answer(request.client, request.round, blob, 0.5)
        return answer, messages.encode(after) if after else b""


class Nodes:
    """One node a client; some may be away."""

    def __init__(self, data: Federated, away: Sequence[str] = ()) -> None:
        self.names = tuple(data.clients)
        self.away = set(away)

    def clients(self) -> Sequence[str]:
        return self.names

    def gather(self, cohort: Sequence[str]) -> dict[str, int]:
        places = {name: 10 + place for place, name in enumerate(self.names)}
        return {name: places[name] for name in cohort if name not in self.away}


def engine(grid: FakeGrid, away: Sequence[str] = (), **options: Any) -> FlowerEngine:
    """Make an engine over a fake grid; options: `FlowerSettings`, `watch`, `complaint`."""
    watch = options.pop("watch", lambda event, facts: None)
    complaint = options.pop("complaint", lambda client, node: "")
    limit = reply_limit(support.tuned().spec.num_bytes)
    chosen = FlowerSettings("", "run-1", limit, poll=0.001, keeps_memories=True)
    nodes = Nodes(grid.data, away)
    settings = replace(chosen, **options)
    return FlowerEngine(lambda: grid, nodes, settings, watch=watch, complaint=complaint)


def error(code: int, reason: str) -> Replies:
    return lambda message, honest: [Message(Error(code, reason), reply_to=message)]


def silent(message: Message, honest: RecordDict) -> list[Any]:
    return []


def words(**changes: Any) -> Replies:
    """Answer honestly but for some words."""

    def answer(message: Message, honest: RecordDict) -> list[Any]:
        changed = RecordDict(dict(honest))
        changed["fedpeft"] = ConfigRecord({**dict(honest["fedpeft"]), **changes})
        return [Message(changed, reply_to=message)]

    return answer


def blob(change: Callable[[bytes], bytes], **fields: Any) -> Replies:
    """Answer honestly but for the buffer, or what is said of it."""

    def answer(message: Message, honest: RecordDict) -> list[Any]:
        data = change(honest["buffers"]["blob"].data)
        said = {"dtype": "uint8", "shape": (len(data),), "stype": "fedpeft.bytes", **fields}
        changed = RecordDict(dict(honest))
        changed["buffers"] = ArrayRecord({"blob": Array(data=data, **said)})
        return [Message(changed, reply_to=message)]

    return answer


def payload(change: Callable[[torch.Tensor], torch.Tensor]) -> Replies:
    """Answer honestly but for the tensor of the delta."""

    def changed(data: bytes) -> bytes:
        tensors, notes = messages.decode(data)
        return messages.encode({**tensors, "delta": change(tensors["delta"])}, notes)

    return blob(changed)


def of_another_node(message: Message, honest: RecordDict) -> list[Any]:
    """Answer honestly, but from another node than the one that was asked."""
    reply = Message(honest, reply_to=message)
    reply.metadata.__dict__["_src_node_id"] = 666
    return [reply]


def twice(message: Message, honest: RecordDict) -> list[Any]:
    """Answer, and answer again with another update."""
    second = payload(lambda delta: delta * 1000)(message, honest)
    return [Message(honest, reply_to=message), *second]


def content(made: RecordDict) -> Replies:
    return lambda message, honest: [Message(made, reply_to=message)]
