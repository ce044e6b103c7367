"""A site: one client with data of its own, which answers a server's requests.

    request ──> name, run, turn, size ──> experiment (allowed?) ──> the client half ──> answer
                        │                         │                       │
                        └────────── no: a refusal with its reason ────────┘

Only the encoded delta and the metrics that the site allows are sent. A refusal repeats only what
the server itself has sent; details of the site's own data or folders stay in the site's log.
"""

from __future__ import annotations

import hashlib
import logging
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from fedpeft.client.turns import BUFFERS, DELTA, ClientTurn
from fedpeft.core.errors import (
    ConfigError,
    DataError,
    DeltaMismatchError,
    EngineError,
    ModelError,
    PrivacyError,
)
from fedpeft.data.examples import ClientData
from fedpeft.engines.flower.requests import Answer, Request
from fedpeft.federation.turn_store import Kept, TurnStore
from fedpeft.rounds.client_half import PRIVATE_NOTES, ClientHalf, run_turn
from fedpeft.rounds.handshake import compare, read_facts
from fedpeft.wire import messages
from fedpeft.wire.stages import start_memory

logger = logging.getLogger(__name__)

_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_EXPERIMENT_BYTES = 2**20
_LAST_TURN = 2**31 - 1


@dataclass(frozen=True)
class Limits:
    """What a site accepts and sends.

    Attributes:
      max_bytes: the largest message, either way.
      metrics: training metrics that may be sent with a delta.
      num_examples: whether the number of examples may be sent; if not, the weight is 1 and the
        duration of a turn is not sent either.
    """

    max_bytes: int
    metrics: frozenset[str] = frozenset({"loss"})
    num_examples: bool = True


@dataclass(frozen=True)
class Prepared:
    """An experiment that is ready to be trained on this site's data.

    Attributes:
      half: the client half.
      data: the site's own examples.
      facts: what the site reports of itself in the handshake.
      once: whether a turn may be answered for one request only, because two replies
        with the same noise would reveal their difference without it.
      charge: called with (run, turn, digest of the request) before a turn is trained; raises
        `PrivacyError` if the turn would exceed the site's privacy budget.
    """

    half: ClientHalf
    data: ClientData
    facts: Mapping[str, str]
    once: bool = False
    charge: Callable[[str, int, str], None] = field(default=lambda run, turn, digest: None)


class Site:
    """The requests of a server, answered one at a time.

    Args:
      name: the name of this client.
      prepare: builds what is trained from the text of the server's experiment; raises a
        `FedpeftError` if the site does not allow it.
      store: the memories of this client.
      limits: what the site accepts and sends.
    """

    def __init__(
        self, name: str, prepare: Callable[[str], Prepared], store: TurnStore, limits: Limits
    ) -> None:
        self._name = name
        self._prepare = prepare
        self._store = store
        self._limits = limits
        self._ready: tuple[str, Prepared] | None = None

    def take(self, request: Request) -> Answer:
        """Answer a request; any error becomes an answer too, a refusal with its reason."""
        began = time.perf_counter()
        try:
            self._check(request)
            ready = self._prepared(request.experiment)
            if request.action == "handshake":
                return _greet(request, ready)
            with self._store.locked():
                blob = self._turn(request, ready)
        except Exception as error:  # the server must get an answer, whatever happens here
            logger.warning("round %s refused", request.round, exc_info=True)
            return Answer(self._name, request.round, refused=_public_reason(error))
        seconds = time.perf_counter() - began
        logger.info("round %d: sent %d bytes in %.2f s", request.round, len(blob), seconds)
        timed = self._limits.num_examples and not ready.half.private
        return Answer(self._name, request.round, blob, seconds if timed else 0.0)

    def _check(self, request: Request) -> None:
        """Refuse a request that is not for this site or is malformed."""
        if request.client != self._name:
            raise ConfigError(
                f"this site is {self._name!r}, the request is for {request.client[:80]!r}"
            )
        if request.action not in ("handshake", "train"):
            raise ConfigError(
                f"action: found {str(request.action)[:40]!r}; allowed are handshake and train"
            )
        if not _RUN_ID.fullmatch(request.run_id):
            raise ConfigError(
                f"run: found {request.run_id[:80]!r}; allowed are letters, digits, _ and -"
            )
        size = len(request.blob)
        if size > self._limits.max_bytes or len(request.experiment) > _EXPERIMENT_BYTES:
            raise ConfigError(
                f"message of {size} bytes with an experiment of {len(request.experiment)}; this "
                f"site allows {self._limits.max_bytes} and {_EXPERIMENT_BYTES} "
                "(allow.max_message_bytes)"
            )
        if request.action == "train" and request.round > _LAST_TURN:
            raise ConfigError(
                f"round: found turn {str(request.round)[:20]}…; allowed is up to {_LAST_TURN}"
            )
        if request.action == "train" and not 0 <= request.committed < request.round:
            raise ConfigError(
                f"round: found turn {request.round} after turn {request.committed}; a turn's "
                "number is above that of the last one that the server took"
            )

    def _prepared(self, text: str) -> Prepared:
        """Prepare an experiment, unless it is the one that is loaded (one at a time)."""
        digest = hashlib.sha256(text.encode()).hexdigest()
        if self._ready is None or self._ready[0] != digest:
            self._ready = None  # frees the other experiment first
            self._ready = digest, self._prepare(text)
        return self._ready[1]

    def _turn(self, request: Request, ready: Prepared) -> bytes:
        """Take a turn, or return the reply that was sent for the same request."""
        digest, run = _request_digest(request), request.run_id
        last = self._store.last(run)
        if last is not None and last.request == digest:
            return last.reply
        if ready.once and last is not None and request.round <= last.turn:
            raise PrivacyError(
                f"turn {request.round} was answered before (last turn: {last.turn}); with privacy "
                "at the site a turn is answered once: equal noise cancels in a difference"
            )
        memory = self._store.start(run, request.committed)
        if memory is None:
            if start_memory(ready.half.up, ready.half.spec):
                raise EngineError(
                    f"the memory after turn {request.committed} of run {run} is not on this site's "
                    "disk any more; put back its state folder, or start a new run"
                )
            memory = {}
        ready.charge(run, request.round, digest)
        turn = ClientTurn(
            request.round, self._name, ready.data, memory, request.seed, request.version
        )
        blob, after = run_turn(ready.half, request.blob, turn)
        reply = self._only_agreed(blob)
        kept = Kept(request.round, digest, after, reply)
        self._store.keep(run, kept, committed=request.committed)
        return reply

    def _only_agreed(self, blob: bytes) -> bytes:
        """Drop the metrics that the site does not send; refuse a reply that holds anything else.

        Raises:
          EngineError: if a reply is too long, or holds neither delta, weight nor metrics.
        """
        tensors, notes = messages.decode(blob)
        other = [n for n in tensors if n not in (DELTA, BUFFERS) and not n.startswith("delta.")]
        other += [n for n in notes if n != "weight" and not n.startswith("metric.")]
        if other:
            raise EngineError(
                f"the reply was not sent: it holds {', '.join(other)}; allowed are delta, weight "
                "and metrics. Use stages that this site's release knows"
            )
        if len(blob) > self._limits.max_bytes:
            raise EngineError(
                f"the reply was not sent: {len(blob)} bytes, {self._limits.max_bytes} are allowed "
                "(allow.max_message_bytes)"
            )
        hidden = {} if self._limits.num_examples else {"weight": PRIVATE_NOTES["weight"]}
        sent = {
            name: value
            for name, value in notes.items()
            if name == "weight" or name.removeprefix("metric.") in self._limits.metrics
        } | hidden
        return blob if sent == notes else messages.encode(tensors, sent)


def _greet(request: Request, ready: Prepared) -> Answer:
    """Report this site's facts; refuse a server whose facts, if it sent them, do not fit."""
    reasons = compare(read_facts(request.blob), ready.facts) if request.blob else []
    refused = "; ".join(reasons)
    if refused:
        logger.warning("handshake refused: %s", refused)
    return Answer(request.client, 0, refused=refused, facts=ready.facts)


def _request_digest(request: Request) -> str:
    head = (request.round, request.committed, request.seed, request.version, request.experiment)
    digest = hashlib.sha256(repr(head).encode())
    digest.update(request.blob)
    return digest.hexdigest()


def _public_reason(error: Exception) -> str:
    """Return what the server may read: errors about its request in full, others by kind only."""
    about_site = isinstance(error, DataError | ModelError)
    about_request = isinstance(error, ConfigError | PrivacyError | DeltaMismatchError | EngineError)
    if about_request and not about_site:
        return f"{type(error).__name__}: {error}"
    if isinstance(error, OSError) and error.strerror:
        return (
            f"the site could not read or write a file of its own ({error.strerror}); its own log "
            "says which"
        )
    return f"{type(error).__name__} at the site; its own log says more"
