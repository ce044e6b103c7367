"""A reply is bounded before it is taken, with Flower's own grid and a server of this process."""

from __future__ import annotations

import time
import tracemalloc

import pytest
from flwr.app import Array, ArrayRecord, Message, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.common.serde import message_to_proto
from flwr.proto.message_pb2 import ObjectTree, PullObjectResponse
from flwr.proto.runtime_pb2 import PullAppMessagesResponse
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.grid.http_grid import HttpGrid

from fedpeft.engines.flower.bounded import Bound
from fedpeft.engines.flower.grid import Unreadable, pull_one

BOUND = Bound(2**20, 0.3)


class SuperLink:
    """Holds one reply, whose parts may be missing, longer or more than they were."""

    def __init__(self, size: int = 1000, *, extra: int = 0, missing: bool = False) -> None:
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 2, 1
        array = Array("uint8", (size,), "fedpeft.bytes", bytes(size))
        content = RecordDict({"buffers": ArrayRecord({"blob": array})})
        message = Message(content, 7, "train")
        message.metadata.__dict__["_message_id"] = message.object_id
        self.parts = {k: v.deflate() for k, v in get_all_nested_objects(message).items()}
        self.tree = get_object_tree(message)
        self.tree.children.extend(ObjectTree(object_id="0" * 64) for _ in range(extra))
        self.head = message_to_proto(remove_content_from_message(message))
        self.missing = missing
        self.asked = 0

    def PullMessages(self, request):
        return PullAppMessagesResponse(messages_list=[self.head], message_object_trees=[self.tree])

    def PullObject(self, request):
        self.asked += 1
        there = not self.missing or request.object_id == self.tree.object_id
        content = self.parts[request.object_id] if there else b""
        return PullObjectResponse(object_found=True, object_available=there, object_content=content)

    def ConfirmMessageReceived(self, request):
        pass


def grid_of(superlink):
    grid = HttpGrid(token="of a test")
    grid._client = superlink
    grid.set_run(Run.create_empty(2))
    return grid


@pytest.mark.parametrize("bound", [BOUND, None])
def test_an_honest_reply_comes_whole(bound):
    superlink = SuperLink(900_000)
    grid = grid_of(superlink)
    (reply,) = pull_one(grid, "1", bound)
    assert len(reply.content["buffers"]["blob"].data) == 900_000
    assert grid._client is superlink, "only this pull is bounded"


def test_a_reply_that_is_too_long_is_not_taken():
    superlink = SuperLink(60 * 2**20)
    tracemalloc.start()
    (reply,) = pull_one(grid_of(superlink), "1", BOUND)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert isinstance(reply, Unreadable) and "more than 1048576 bytes" in reply.reason
    assert peak < 30 * 2**20, "a few parts at most"


def test_a_reply_of_too_many_parts_is_not_begun():
    superlink = SuperLink(extra=10_000)
    (reply,) = pull_one(grid_of(superlink), "1", BOUND)
    assert isinstance(reply, Unreadable) and "parts; allowed are at most 68" in reply.reason
    assert superlink.asked == 0


def test_parts_that_never_come_are_not_waited_for():
    began = time.monotonic()
    (reply,) = pull_one(grid_of(SuperLink(missing=True)), "1", BOUND)
    assert isinstance(reply, Unreadable) and "did not come within 0.3 s" in reply.reason
    assert time.monotonic() - began < 5


def test_without_a_bound_everything_is_taken():
    """The negative control of the first two laws."""
    (reply,) = pull_one(grid_of(SuperLink(60 * 2**20)), "1")
    assert len(reply.content["buffers"]["blob"].data) == 60 * 2**20
