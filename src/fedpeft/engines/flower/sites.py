"""The roster of a deployment: which site uses which node, as found by handshakes.

    new node ──handshake: the server's facts──> site ──its own facts, or no──> known | refused
                                                          its key has its name?

A site keeps its name, but its node may change. Before each round the nodes of the cohort are looked
up again; a site that reconnects with another node gets a new handshake and continues. A site says
its name itself: where the server has a table of keys, a name counts only with its key.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedpeft.core.errors import DeltaMismatchError, RoundError
from fedpeft.engines.flower.bounded import Bound
from fedpeft.engines.flower.grid import Grid, Unreadable, Watch, ignore, pull_one, push_one
from fedpeft.engines.flower.messages import GONE, error_words, read_answer, write_request
from fedpeft.engines.flower.requests import Answer, Request

if TYPE_CHECKING:
    from flwr.app import Message


logger = logging.getLogger(__name__)

_LIMIT = 2**20
_GREETING = Bound(_LIMIT, 30.0)
_POLL = 0.5
_AGAIN = 15.0
_ROUND_PATIENCE = 30.0
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True)
class Greeting:
    """The server's side of a handshake.

    Attributes:
      experiment: the resolved experiment, as TOML text.
      run_id: our identifier of the run.
      facts: the server's facts, encoded.
      judge: a site's facts -> the reasons why it does not match; [] if it matches.
    """

    experiment: str
    run_id: str
    facts: bytes
    judge: Callable[[Mapping[str, str]], Sequence[str]]


@dataclass(frozen=True)
class Identities:
    """The names of sites that are bound to keys.

    Attributes:
      names: every name that has a key; no other site can take part.
      complaint: (name, node) -> why the node is not that site; "" if it is.
      owner: node -> the name that its key has; "" if it has none.
    """

    names: Collection[str]
    complaint: Callable[[str, int], str]
    owner: Callable[[int], str]


class Sites:
    """The sites of a deployment.

    Args:
      grid: Flower's grid.
      greeting: the server's side of the handshake.
      names: names of all sites, where an earlier part of the run fixed them; else ().
      watch: called with each site that is accepted or refused.
      identities: the names that are bound to keys; None: a site has the name that it says.
    """

    def __init__(
        self,
        grid: Grid,
        greeting: Greeting,
        *,
        names: Sequence[str] = (),
        watch: Watch = ignore,
        identities: Identities | None = None,
    ) -> None:
        self._grid = grid
        self._greeting = greeting
        self._names = tuple(sorted(names))
        self._watch = watch
        self._identities = identities
        self._said_no: set[str] = set()  # names under which a node was refused
        self._nodes: dict[str, int] = {}
        self._refused: dict[int, str] = {}
        self._pending: dict[str, int] = {}  # handshake -> node
        self._last_sent: dict[int, float] = {}
        self._doubles: dict[int, str] = {}

    def clients(self) -> Sequence[str]:
        """Return the names of all sites, sorted; they are the same for the whole run."""
        return self._names

    def refusals(self) -> Mapping[int, str]:
        """Return node -> the reason why it was refused."""
        return dict(self._refused)

    def complaint(self, client: str, node: int) -> str:
        """Return why a node is not a client by its key, now; "" if it is, or no keys are known."""
        return self._identities.complaint(client, node) if self._identities else ""

    def meet(self, expected: int, patience: float) -> Sequence[str]:
        """Wait for all sites, and fix their names.

        After a resume, the sites of the earlier part of the run are awaited too, but need not come.

        Args:
          expected: number of sites of the experiment.
          patience: longest time to wait, in seconds.

        Returns:
          the names, sorted.

        Raises:
          RoundError: if fewer sites connect, with the reasons of refused nodes.
        """
        until = time.monotonic() + patience
        while len(self._nodes) < expected and time.monotonic() < until:
            self._poll_nodes()
            if self._hopeless(expected):
                break
            time.sleep(_POLL)
        if self._names:
            return self._names
        if len(self._nodes) < expected:
            raise RoundError(
                f"handshake: {len(self._nodes)} of {expected} sites (data.partition.clients) came "
                f"within {patience:g} s (engine.wait): {', '.join(sorted(self._nodes)) or 'none'}. "
                + self._complaints()
            )
        self._names = tuple(sorted(self._nodes))
        return self._names

    def _hopeless(self, expected: int) -> bool:
        """Whether too few sites are left to wait for: the others answered, and will not change."""
        if self._pending:
            return False
        if self._identities is None:
            return len(self._nodes) + len(self._refused) >= expected
        may_come = set(self._identities.names) - self._said_no
        return len(may_come | set(self._nodes)) < expected

    def gather(self, cohort: Sequence[str]) -> Mapping[str, int]:
        """Return site -> node for a cohort, after a short wait for sites that are away."""
        until = time.monotonic() + _ROUND_PATIENCE
        while missing := sorted(set(cohort) - set(self._connected(cohort))):
            if not self._poll_nodes() or time.monotonic() > until:
                logger.warning("not connected: %s", ", ".join(missing))
                break
            time.sleep(_POLL)
        return self._connected(cohort)

    def _connected(self, cohort: Sequence[str]) -> dict[str, int]:
        online, nodes = self._online(), self._nodes
        return {name: nodes[name] for name in cohort if nodes.get(name) in online}

    def _online(self) -> Collection[int]:
        return set(self._grid.get_node_ids())

    def _poll_nodes(self) -> bool:
        """Send handshakes to new nodes and read answers; return whether more may arrive."""
        online, now = self._online(), time.monotonic()
        known = {node for node in self._nodes.values() if node in online}
        for node in sorted(set(online) - known - set(self._pending.values())):
            freed = node in self._doubles and self._nodes.get(self._doubles[node]) not in online
            if freed or now - self._last_sent.get(node, -_AGAIN) >= _AGAIN:
                self._doubles.pop(node, None)
                self._greet(node, now)
        for sent in list(self._pending):
            self._take_answer(sent, online)
        waited = set(self._pending.values()) | (set(online) - known)
        return bool(waited - set(self._refused))  # a refused node may come back, unawaited

    def _greet(self, node: int, now: float) -> None:
        self._last_sent[node] = now
        ours = self._greeting
        request = Request("handshake", ours.run_id, "", 0, 0, 0, 0, ours.experiment, ours.facts)
        content = write_request(request)
        sent = push_one(self._grid, content, node, kind="query", group="handshake", ttl=3600.0)
        if sent is not None:
            self._pending[sent] = node

    def _take_answer(self, sent: str, online: Collection[int]) -> None:
        node = self._pending[sent]
        replies = pull_one(self._grid, sent, _GREETING)
        if not replies:
            if node not in online:
                del self._pending[sent]
            return
        del self._pending[sent]
        if _is_gone(replies[0]):
            return  # it restarts, perhaps: a handshake follows when it is back
        name, reason, facts = self._checked(replies[0])
        if self._identities is not None:
            name = name or self._identities.owner(node)
            reason = reason or self.complaint(name, node)
        holder = self._nodes.get(name)
        if not reason and holder is not None and holder != node and holder in online:
            self._doubles[node] = name
            reason = f"another node is site {name!r} already; each site needs a name of its own"
        if not reason and self._names and name not in self._names:
            reason = f"site {name!r} is new; this run began with {', '.join(self._names)}"
        if reason:
            self._refuse(node, name, reason)
            return
        self._nodes[name] = node
        self._refused.pop(node, None)
        self._said_no.discard(name)
        self._watch("met", {"client": name, "node": str(node), "facts": dict(facts)})

    def _refuse(self, node: int, name: str, reason: str) -> None:
        if self._refused.get(node) != reason:
            logger.warning("node %s (%s) is refused: %s", node, name or "no name", reason)
            self._watch("refused", {"node": str(node), "client": name, "reason": reason})
        self._refused[node] = reason
        self._said_no.add(name)

    def _checked(self, reply: Message | Unreadable) -> tuple[str, str, Mapping[str, str]]:
        """Return a site's name, the reason why it is refused ("" if it is not), and its facts."""
        if isinstance(reply, Unreadable):
            return "", f"its answer cannot be read: {reply.reason}", {}
        if reply.has_error():
            return "", error_words(reply.error.code, reply.error.reason), {}
        try:
            answer, _ = read_answer(reply.content, limit=_LIMIT, with_memory=False)
        except DeltaMismatchError as error:
            return "", f"its answer cannot be read: {error}", {}
        name = _name_of(answer)
        reasons = [answer.refused] if answer.refused else list(self._greeting.judge(answer.facts))
        if not reasons and not name:
            reasons = ["it has no name"]
        return name, "; ".join(reasons)[:2000], answer.facts

    def _complaints(self) -> str:
        """Return a sentence on the nodes that were refused."""
        if not self._refused:
            return "No other node is connected to the SuperLink; look at `fedpeft node` there"
        rows = [f"node {node}: {reason}" for node, reason in list(self._refused.items())[:5]]
        return "Refused: " + "; ".join(rows)


def _is_gone(reply: Message | Unreadable) -> bool:
    """Whether the SuperLink says in a node's place that it, or its answer, is not there."""
    return not isinstance(reply, Unreadable) and reply.has_error() and reply.error.code in GONE


def _name_of(answer: Answer) -> str:
    name = answer.facts.get("site", answer.client)
    return name if _NAME.fullmatch(name) else ""
