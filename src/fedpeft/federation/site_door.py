"""What a site's short-lived app calls: the resident worker, or the site itself.

Nothing heavy is imported where a worker is at hand: the process of a message is gone in a second.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from fedpeft.core.errors import EngineError
from fedpeft.engines.flower.requests import Answer, Request
from fedpeft.federation.resident import SOCKET, ask

__all__ = ["SECONDS", "SITE", "answer"]

SITE = "fedpeft-site"
"""Under this name a node's configuration names the site's file, where there is no worker."""

SECONDS = "fedpeft-seconds"
"""Under this name it says how long a turn may take."""


def answer(request: Request, node: Mapping[str, object]) -> Answer:
    """Have a request answered at this site; what goes wrong is an answer too.

    Args:
      request: what the server asks.
      node: the node's own configuration, as `fedpeft node` has written it.
    """
    try:
        if SOCKET in node:
            seconds = float(str(node.get(SECONDS, 3600.0)))
            return ask(Path(str(node[SOCKET])), request, timeout=seconds)
        if SITE in node:
            from fedpeft.experiment.site_file import read_site
            from fedpeft.federation.site_side import make_site

            return make_site(read_site(Path(str(node[SITE])))).take(request)
        raise EngineError("this node was not started by `fedpeft node`: it names no site")
    except EngineError as error:
        return Answer(request.client, request.round, refused=f"{type(error).__name__}: {error}")
