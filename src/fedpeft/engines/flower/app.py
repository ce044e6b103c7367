"""The two apps of the bundle that a deployment runs: thin, and the same for every experiment.

    ServerApp   hands its grid and the run's configuration to a function of ours
    ClientApp   hands each request to the site: its resident worker, or the site in this process

A ClientApp lives for one message, so nothing heavy is imported here.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, TypeAlias

from fedpeft.core.errors import DeltaMismatchError, FedpeftError
from fedpeft.engines.flower.grid import Grid
from fedpeft.engines.flower.messages import read_request, write_answer
from fedpeft.engines.flower.requests import Answer, Request

if TYPE_CHECKING:
    from flwr.app import Context, Message
    from flwr.clientapp import ClientApp
    from flwr.serverapp import ServerApp

__all__ = ["AppFailure", "Serve", "SiteAnswer", "client_app", "server_app"]

logger = logging.getLogger(__name__)

Serve: TypeAlias = Callable[[Grid, Mapping[str, str | bool | int | float]], None]
"""The server's part: a grid, and the run's configuration."""

SiteAnswer: TypeAlias = Callable[[Request, Mapping[str, object]], Answer]
"""The site's part: a request, and the node's own configuration."""

SITE_NAME = "site"
"""Under this name a node's own configuration gives the site's name."""


class AppFailure(RuntimeError):
    """Ends a ServerApp; Flower shows its text as the details of the failed run."""


def server_app(serve: Serve) -> ServerApp:
    """Return the app that runs at the SuperLink."""
    from flwr.serverapp import ServerApp

    app = ServerApp()
    app.main()(functools.partial(_main, serve))
    return app


def client_app(answer: SiteAnswer) -> ClientApp:
    """Return the app that runs at each node, for handshakes and for turns."""
    from flwr.clientapp import ClientApp

    app = ClientApp()
    handle = functools.partial(_handle, answer)
    app.train()(handle)
    app.query()(handle)
    return app


def _main(serve: Serve, grid: Grid, context: Context) -> None:
    try:
        serve(grid, context.run_config)
    except FedpeftError as error:
        raise AppFailure(f"[fedpeft exit {error.exit_code}] {error}") from error


def _handle(answer: SiteAnswer, message: Message, context: Context) -> Message:
    from flwr.app import Message

    try:
        request, _ = read_request(message.content)
    except (DeltaMismatchError, ValueError) as error:
        logger.error("a message of the server cannot be read: %s", error)
        said = Answer("", 0, refused=f"the message cannot be read: {error}")
        return Message(write_answer(said), reply_to=message)
    name = str(context.node_config.get(SITE_NAME, ""))
    if request.action == "handshake" and not request.client:
        request = dataclasses.replace(request, client=name)
    said = answer(request, context.node_config)
    if said.refused:
        logger.error("refused: %s", said.refused)
    return Message(write_answer(said), reply_to=message)
