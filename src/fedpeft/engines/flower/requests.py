"""The requests of a server to a site, and the answers of a site.

    server ──Request(action, ..., blob)──> site ──Answer(blob | refused)──> server

Both consist of bytes, strings and numbers, so that any transport can carry them: a Flower message,
a socket.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class Request:
    """A request of the server to one client.

    Attributes:
      action: `handshake`: report facts about the site, and whether it accepts this experiment;
        `train`: take a turn.
      run_id: our identifier of the run, drawn once for a run folder and unchanged by a resume; the
        site stores the client's memories under it.
      client: name of the client.
      round: number of the turn, from 1; 0 in a handshake.
      committed: the last turn of this client whose reply the server accepted (0: none).
      seed: seed of the turn.
      version: round of the server state from which the turn starts.
      experiment: the resolved experiment as TOML text, so that both sides can compare digests; a
        site uses only the settings that it allows.
      blob: the encoded broadcast; empty in a handshake.
    """

    action: Literal["handshake", "train"]
    run_id: str
    client: str
    round: int
    committed: int
    seed: int
    version: int
    experiment: str
    blob: bytes = b""


@dataclass(frozen=True)
class Answer:
    """The answer of a client to a request.

    Attributes:
      client: name of the client.
      round: number of the turn that this answers.
      blob: the encoded reply; empty in a handshake and where refused.
      seconds: time of the client's own work.
      refused: the reason why there is no reply; empty where there is one.
      facts: in a handshake, the site's name, examples, fingerprint, digests and versions.
    """

    client: str
    round: int
    blob: bytes = b""
    seconds: float = 0.0
    refused: str = ""
    facts: Mapping[str, str] = field(default_factory=dict)
