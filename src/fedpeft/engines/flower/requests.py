"""What a server asks of a site, and what a site answers: the words between engine and site.

server ──Request(action, notes, blob)──> site ──Answer(blob | refused)──> server

Both are plain bytes and strings, so that any carrier can take them: a Flower message, a socket.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

__all__ = ["Answer", "Request"]


@dataclass(frozen=True)
class Request:
    """What a server asks of one client.

    Attributes:
      action: `handshake`: say who you are, and whether this experiment fits you; `train`: take a
        turn.
      run_id: ours, drawn once for a run folder and kept over every resume; names the memories.
      client: name of the client that is meant.
      round: number of the turn, from 1; 0 in a handshake.
      committed: the last turn of this client that the server took (0: none).
      seed: of the turn.
      version: of the server state that the turn starts from.
      experiment: the resolved experiment as TOML text, so that both sides can compare digests; a
        site takes only what it allows from it.
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
    """What a client says.

    Attributes:
      client: name.
      round: number of the turn that this answers.
      blob: the encoded reply; empty in a handshake and where refused.
      seconds: of the client's own work.
      refused: why there is no reply, in words; empty where there is one.
      facts: in a handshake, who the site is: name, examples, fingerprint, digests, versions.
    """

    client: str
    round: int
    blob: bytes = b""
    seconds: float = 0.0
    refused: str = ""
    facts: Mapping[str, str] = field(default_factory=dict)
