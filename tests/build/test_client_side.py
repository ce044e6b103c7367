"""The client's side, built from an experiment's text: what the actors of a simulation run."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
from flwr.app import Message
from flwr.supercore.task_identity import TaskIdentity

from fedpeft.build import engine
from fedpeft.build.run import build_run
from fedpeft.engines.flower.messages import read_request, write_answer
from fedpeft.experiment.read import DIGITS, read_experiment
from fedpeft.experiment.resolve import resolve
from fedpeft.rounds.round import run_round

SETS = [
    "model.name=preset:tiny-vit",
    "client.epochs=1",
    "data.partition.clients=4",
    "federation.clients_per_round=3",
    "engine.workers=1",
    'wire.up=[{name = "top_k", fraction = 0.3}]',
]


class InThisProcess:
    """Stands for Flower's simulation: real messages, answered at once, without Ray."""

    def __init__(self, take, resources, num_nodes):
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 2, 1
        self.take, self.num_nodes, self.inbox = take, num_nodes, {}
        self.numbers = itertools.count(1)

    def open(self):
        return self

    def nodes(self):
        return range(1, self.num_nodes + 1)

    get_node_ids = nodes

    def push_messages(self, pushed):
        (message,) = pushed
        number = str(next(self.numbers))
        message.metadata.__dict__["_message_id"] = number
        content = write_answer(*self.take(*read_request(message.content)))
        self.inbox[number] = [Message(content, reply_to=message)]
        return [number]

    def pull_messages(self, numbers):
        return self.inbox.pop(numbers[0], [])

    def alive(self):
        return None

    close = alive


def rounds(*sets):
    """Two rounds: the state, what their records say but for the time, and the evaluation."""
    built = build_run(resolve(read_experiment(DIGITS, [*SETS, *sets])))
    state, records = built.start, []
    for _ in range(2):
        state, record = run_round(state, built.plan, built.engine)
        records.append(dataclasses.replace(record, seconds=0.0))
    return state.delta.tolist(), records, built.evaluate(state)


@pytest.mark.parametrize("method", ["head", "bias"])
def test_an_actor_builds_the_local_engines_clients(monkeypatch, method):
    """With kept features (head) and without, and with clients' memories."""
    monkeypatch.setattr(engine, "Simulation", InThisProcess)
    chosen = f"tuning.method={method}"
    expected = rounds(chosen, "engine.clients_per_pass=1")
    assert rounds(chosen, "engine.name=flower-simulation") == expected
    assert not expected[1][0].failures
    assert rounds(chosen, "engine.name=flower-simulation", "client.lr=0.02") != expected


def test_what_an_actor_cannot_read_is_a_failure_of_its_client():
    from fedpeft.build.client_side import take
    from fedpeft.engines.flower.requests import Request

    said, kept = take(Request("train", "r", "a", 1, 0, 1, 0, "colour = 1"), b"")
    assert said.client == "a" and "colour: unknown key" in said.refused and not kept
