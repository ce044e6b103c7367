"""The two Flower apps that a deployment runs, the same for every experiment.

    ServerApp   calls our server function with its grid and the run's configuration
    ClientApp   calls our site function with each request

A ClientApp lives for one message only, so this module imports nothing slow.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, TypeAlias

from fedpeft.core.errors import DeltaMismatchError, FedpeftError, NotFiniteError
from fedpeft.engines.flower.grid import Grid
from fedpeft.engines.flower.messages import read_request, write_answer
from fedpeft.engines.flower.requests import Answer, Request

if TYPE_CHECKING:
    from flwr.app import Context, Message
    from flwr.clientapp import ClientApp
    from flwr.serverapp import ServerApp


logger = logging.getLogger(__name__)

Serve: TypeAlias = Callable[[Grid, Mapping[str, str | bool | int | float]], None]
"""The server function: (grid, the run's configuration)."""

SiteAnswer: TypeAlias = Callable[[Request, Mapping[str, object]], Answer]
"""The site function: (request, the node's configuration) -> answer."""

NOT_FINITE = "not finite: "
"""Marks a verdict of exit code 4 that a retry cannot change."""

SITE_NAME = "site"
"""The key of a node's configuration that holds the site's name."""


class AppFailure(RuntimeError):
    """An error that ends a ServerApp; Flower shows its text as the details of the failed run."""


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
        kind = NOT_FINITE if isinstance(error, NotFiniteError) else ""
        raise AppFailure(f"[fedpeft exit {error.exit_code}] {kind}{error}") from error


def _handle(answer: SiteAnswer, message: Message, context: Context) -> Message:
    from flwr.app import Message

    try:
        request, _ = read_request(message.content)
    except (DeltaMismatchError, ValueError) as error:
        logger.error("a message of the server cannot be read: %s", error)
        unread = Answer("", 0, refused=f"the message cannot be read: {error}")
        return Message(write_answer(unread), reply_to=message)
    name = str(context.node_config.get(SITE_NAME, ""))
    if request.action == "handshake" and not request.client:
        request = dataclasses.replace(request, client=name)
    reply = answer(request, context.node_config)
    if reply.refused:
        logger.error("refused: %s", reply.refused)
    return Message(write_answer(reply), reply_to=message)
