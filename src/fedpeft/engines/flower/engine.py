"""The Flower engine: clients behind a Flower grid, in its simulation or in its deployment.

    job ──Request──> push ──> SuperLink ──> nodes ──> push ──> SuperLink ──pull──Answer──> replies
                     │                                                      │
                     └── at most `window` under way, each with a deadline ──┘

Every reply is checked here: one that is late, repeated, of another round or client, too long or
malformed becomes a `Failure` with its reason, or is dropped. Others are passed on without decoding;
the round decodes them and refuses wrong shapes, types and numbers.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from torch import Tensor

from fedpeft.client.evaluate import Evaluation
from fedpeft.core.text import plain
from fedpeft.engines.flower.bounded import Bound
from fedpeft.engines.flower.grid import Grid, Unreadable, Watch, ignore, pull_one, push_one
from fedpeft.engines.flower.messages import error_words, read_answer, write_request
from fedpeft.engines.flower.requests import Answer, Request
from fedpeft.engines.memories import Memories
from fedpeft.engines.scoring import Scorer, score_all
from fedpeft.rounds.job import Failure, Job, Reply
from fedpeft.rounds.round_plan import turn_seed
from fedpeft.wire import messages

if TYPE_CHECKING:
    from flwr.app import Message


logger = logging.getLogger(__name__)

_HALF_A_DAY = 43_200.0
_MEMORY_HEADER = 2**20
_AROUND = 2**18  # fields and Flower's own records beside the reply's buffer
_LEAST_SECONDS = 5.0  # for a reply that is there already when its deadline comes


class Roster(Protocol):
    """The assignment of clients to nodes."""

    def clients(self) -> Sequence[str]:
        """Return the names of all clients, in a fixed order."""
        ...

    def gather(self, cohort: Sequence[str]) -> Mapping[str, int]:
        """Return client -> node for a cohort, before its round, without clients that are away."""
        ...


@dataclass(frozen=True)
class FlowerSettings:
    """The settings of a Flower engine.

    Attributes:
      experiment: the resolved experiment, as TOML text.
      run_id: our identifier of the run, which stays the same after a resume.
      limit: largest size of a reply, in bytes.
      deadline: longest time from a request to its reply, in seconds; None: no limit.
      poll: time between two checks for replies, in seconds.
      window: largest number of turns under way at once; 0: the whole cohort.
      keeps_memories: whether the server stores the clients' memories (simulation) instead of the
        clients (deployment).
    """

    experiment: str
    run_id: str
    limit: int
    deadline: float | None = None
    poll: float = 0.5
    window: int = 0
    keeps_memories: bool = False


def reply_limit(payload_bytes: int) -> int:
    """Return the largest allowed size of a reply, in bytes, for a payload of `payload_bytes`.

    A stage may send an index with each number, which takes up to three times the payload.
    """
    return 4 * payload_bytes + 2**20


@dataclass(frozen=True)
class _Pending:
    client: str
    node: int
    number: int
    committed: int
    at: float


class FlowerEngine:
    """Runs clients behind a Flower grid.

    Args:
      open_grid: returns the grid; called at the first round, so that nothing starts earlier.
      roster: the assignment of clients to nodes.
      settings: deadline, limits and the contents of each request.
      alive: raises `EngineError` once the grid has ended; called while the engine waits.
      watch: called with each event.
      on_close: stops what `open_grid` started.
      scorer: scorer of the server's test set, for `evaluate`.
      complaint: (client, node) -> why a reply of the node is not that client's; "" if it is.
    """

    def __init__(
        self,
        open_grid: Callable[[], Grid],
        roster: Roster,
        settings: FlowerSettings,
        *,
        alive: Callable[[], None] = lambda: None,
        watch: Watch = ignore,
        on_close: Callable[[], None] = lambda: None,
        scorer: Scorer | None = None,
        complaint: Callable[[str, int], str] = lambda client, node: "",
    ) -> None:
        self._open_grid = open_grid
        self._roster = roster
        self._settings = settings
        self._alive = alive
        self._watch = watch
        self._on_close = on_close
        self._scorer = scorer
        self._complaint = complaint
        self._memories = Memories()

    def clients(self) -> Sequence[str]:
        """Return the names of all clients."""
        return self._roster.clients()

    def run(self, job: Job) -> Iterator[Reply | Failure]:
        """Run the turns of a cohort over the grid; yield answers in the order of their arrival.

        Raises:
          EngineError: if the grid itself fails.
        """
        grid = self._open_grid()
        nodes = self._roster.gather(job.cohort)
        waiting = deque(job.cohort)
        window = self._settings.window or len(waiting)
        pending: dict[str, _Pending] = {}
        while waiting or pending:
            while waiting and len(pending) < window:
                client = waiting.popleft()
                failed = self._ask(grid, job, client, nodes.get(client), pending)
                if failed is not None:
                    yield self._reported(failed, job.round)
            came = False
            for answer in self._collect(grid, pending):
                came = True
                yield self._reported(answer, job.round)
            if pending and not came:
                self._alive()
                time.sleep(self._settings.poll)

    def evaluate(self, delta: Tensor, buffers: Tensor) -> Evaluation:
        """Score the server's whole test set, in this process.

        Args:
          delta: flat, float32 [P].
          buffers: the buffers that are sent, flat; of length 0 where there are none.

        Raises:
          EngineError: if the engine was made without a scorer.
        """
        return score_all(self._scorer, delta, buffers)

    def memories(self, committed: Mapping[str, int]) -> dict[str, Tensor]:
        """Return the committed memories that the server stores, for a checkpoint."""
        return self._memories.dump(committed)

    def restore(self, memories: Mapping[str, Tensor], committed: Mapping[str, int]) -> None:
        """Restore the memories that `memories` returned."""
        self._memories.load(memories, committed)

    def close(self) -> None:
        """Stop what was started for this engine."""
        self._on_close()

    def _ask(
        self, grid: Grid, job: Job, client: str, node: int | None, pending: dict[str, _Pending]
    ) -> Failure | None:
        """Send one request; return a failure if the client is not connected."""
        if node is None:
            return Failure(client, "the site is not connected", reached=False)
        number = job.turns.get(client, job.round)
        committed = job.committed[client]
        request = Request(
            "train",
            self._settings.run_id,
            client,
            number,
            committed,
            turn_seed(job.seed, number, client),
            job.versions.get(client, job.round - 1),
            self._settings.experiment,
            job.broadcast[client],
        )
        memory = self._memories.get(client, committed)
        content = write_request(request, messages.encode(memory) if memory else b"")
        limit = self._settings.deadline
        sent = push_one(
            grid, content, node, kind="train", group=str(job.round), ttl=limit or _HALF_A_DAY
        )
        if sent is None:
            return Failure(client, "the message could not be sent", reached=False)
        pending[sent] = _Pending(client, node, number, committed, time.monotonic())
        self._watch("asked", {"round": job.round, "client": client, "bytes": len(request.blob)})
        return None

    def _collect(self, grid: Grid, pending: dict[str, _Pending]) -> Iterator[Reply | Failure]:
        """Yield the answers that arrived and failures of late turns, removed from `pending`."""
        for sent in list(pending):
            turn = pending[sent]
            answer: Reply | Failure | None = None
            for reply in pull_one(grid, sent, self._bound(turn)):
                if answer is not None or not _replies_to(reply, sent):
                    self._watch("dropped", {"client": turn.client, "turn": turn.number})
                    logger.warning("client %s: one more reply was dropped", turn.client)
                    continue
                answer = self._checked(reply, turn)
            limit = self._settings.deadline
            if answer is None and limit is not None and time.monotonic() - turn.at > limit:
                answer = Failure(turn.client, f"no answer within {limit:g} s (engine.deadline)")
            if answer is not None:
                del pending[sent]
                yield answer

    def _bound(self, turn: _Pending) -> Bound | None:
        """Return what is taken of a reply; None where clients are the server's own (simulation)."""
        if self._settings.keeps_memories:
            return None
        limit = self._settings.deadline
        left = None if limit is None else max(turn.at + limit - time.monotonic(), _LEAST_SECONDS)
        return Bound(self._settings.limit + _AROUND, left)

    def _checked(self, reply: Message | Unreadable, turn: _Pending) -> Reply | Failure:
        """Return a reply for the round, or a failure if the message fails a check."""
        if isinstance(reply, Unreadable):
            return Failure(turn.client, f"reply refused: {reply.reason}")
        if reply.has_error():  # also one that the SuperLink itself says in a site's place
            return Failure(turn.client, error_words(reply.error.code, reply.error.reason))
        foreign = self._foreign(reply, turn)
        if foreign:
            return Failure(turn.client, f"reply refused: {foreign}")
        try:
            keeps = self._settings.keeps_memories
            answer, memory = read_answer(
                reply.content, limit=self._settings.limit, with_memory=keeps
            )
            kept = messages.decode(memory, most_header=_MEMORY_HEADER)[0] if memory else {}
        except Exception as error:  # nothing that a client sends may end a run
            return Failure(turn.client, f"reply refused: {plain(error)}")
        reason = _mismatch(answer, turn)
        if reason:
            return Failure(turn.client, reason)
        if kept:
            self._memories.keep(turn.client, kept, committed=turn.committed, turn=turn.number)
        return Reply(turn.client, answer.blob, answer.seconds)

    def _foreign(self, reply: Message, turn: _Pending) -> str:
        """Return why a reply is not of the client that was asked; "" if it is."""
        source = reply.metadata.src_node_id
        if source != turn.node:
            return f"it came from node {source}, the request went to node {turn.node}"
        return self._complaint(turn.client, turn.node)

    def _reported(self, answer: Reply | Failure, number: int) -> Reply | Failure:
        facts: dict[str, object] = {"round": number, "client": answer.client}
        if isinstance(answer, Failure):
            answer = dataclasses.replace(answer, reason=plain(answer.reason))
            logger.warning("client %s: %s", answer.client, answer.reason)
            self._watch("failed", facts | {"reason": answer.reason})
        else:
            self._watch("answered", facts | {"bytes": len(answer.blob), "seconds": answer.seconds})
        return answer


def _replies_to(reply: Message | Unreadable, sent: str) -> bool:
    """Whether a reply names the message that it was pulled for, or none that can be read."""
    return isinstance(reply, Unreadable) or reply.metadata.reply_to_message_id in ("", sent)


def _mismatch(answer: Answer, turn: _Pending) -> str:
    """Return why an answer does not belong to a request; "" if it does."""
    if answer.client != turn.client:
        return f"reply refused: it is from client {plain(answer.client, 80)!r}"
    if answer.refused:
        return answer.refused[:500]
    if answer.round != turn.number:
        return (
            f"reply refused: it is for turn {answer.round}, the request was for turn {turn.number}"
        )
    return "" if answer.blob else "reply refused: it is empty"
