"""Flower's simulation over Ray, inside this process, as long as an engine needs its grid.

    this process:   round loop ──> engine ──> in-memory grid ┐        (a thread runs Flower)
    Ray actors:     model and data, built once, kept  <──────┘        one client at a time each

A virtual node is not a client: a request names its client, and any actor can run any client. So
the number of virtual nodes is that of turns under way at once, and a million clients cost nothing.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from fedpeft.core.errors import EngineError
from fedpeft.engines.flower.grid import Grid
from fedpeft.engines.flower.messages import read_request, write_answer
from fedpeft.engines.flower.requests import Answer, Request

if TYPE_CHECKING:
    from flwr.app import Context, Message
    from flwr.clientapp import ClientApp


Take: TypeAlias = Callable[[Request, bytes], tuple[Answer, bytes]]
"""A client's half: (request, encoded memory) -> (answer, encoded new memory)."""

_START_SECONDS = 300.0
_END_SECONDS = 60.0
_CONNECT_SECONDS = 5.0


@dataclass(frozen=True)
class Resources:
    """The resources that Ray gives to the actors.

    Attributes:
      actors: number of actors on this machine; ignored with `address`, where the cluster's
        resources decide.
      cpus: CPUs of one actor.
      gpus: GPUs of one actor; with a fraction, actors share a GPU.
      address: address of a running Ray cluster; None starts Ray on this machine.
    """

    actors: int = 1
    cpus: float = 1.0
    gpus: float = 0.0
    address: str | None = None


class VirtualNodes:
    """The roster of a simulation, which assigns a cohort to the virtual nodes in turn.

    Args:
      clients: names of all clients.
      nodes: returns the identifiers of the virtual nodes.
    """

    def __init__(self, clients: Sequence[str], nodes: Callable[[], Sequence[int]]) -> None:
        self._clients = tuple(clients)
        self._nodes = nodes

    def clients(self) -> Sequence[str]:
        """Return the names of all clients."""
        return self._clients

    def gather(self, cohort: Sequence[str]) -> Mapping[str, int]:
        """Return client -> node for a cohort, spread evenly over the nodes."""
        nodes = self._nodes()
        return {client: nodes[place % len(nodes)] for place, client in enumerate(cohort)}


class Simulation:
    """Flower's simulation in a thread.

    Args:
      take: the client's half, importable by its name in every actor.
      resources: resources of the actors.
      num_nodes: number of virtual nodes.
    """

    def __init__(self, take: Take, resources: Resources, num_nodes: int) -> None:
        self._take = take
        self._resources = resources
        self._num_nodes = num_nodes
        self._ready = threading.Event()
        self._ended = threading.Event()
        self._grid: Grid | None = None
        self._error: BaseException | None = None
        self._thread: threading.Thread | None = None

    def open(self) -> Grid:
        """Return the grid of the simulation, which the first call starts.

        Raises:
          EngineError: if the simulation cannot be started.
        """
        if self._thread is None:
            quiet_environment()
            _check_cluster(self._resources.address)
            self._thread = threading.Thread(target=self._run, name="flower", daemon=True)
            self._thread.start()
        if not self._ready.wait(_START_SECONDS):
            raise EngineError(f"engine: Flower's simulation did not start in {_START_SECONDS:g} s")
        self.alive()
        assert self._grid is not None
        return self._grid

    def nodes(self) -> Sequence[int]:
        """Return the identifiers of the virtual nodes."""
        return sorted(self.open().get_node_ids())

    def alive(self) -> None:
        """Check that the simulation is still running.

        Raises:
          EngineError: if it has ended, with the reason.
        """
        if self._error is not None or (self._thread and not self._thread.is_alive()):
            raise EngineError(
                f"engine: Flower's simulation has ended: {_root(self._error)}. Look at "
                "engine.client_cpus, engine.client_gpus, engine.workers and free memory"
            ) from self._error

    def close(self) -> None:
        """Stop the simulation and every process that it started."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join(_END_SECONDS)
            self._thread = None

    def _run(self) -> None:
        from flwr.serverapp import ServerApp
        from flwr.simulation import run_simulation

        app = ServerApp()
        app.main()(self._serve)
        try:
            with _quiet_logs():
                run_simulation(
                    server_app=app,
                    client_app=simulation_client(self._take),
                    num_supernodes=self._num_nodes,
                    backend_config=_backend(self._resources),
                )
        except BaseException as error:  # also an exit: `alive` reports how this thread ended
            self._error = error
        finally:
            self._ready.set()

    def _serve(self, grid: Grid, context: Context) -> None:
        """Run as Flower's server app: publish the grid, and wait for the end."""
        self._grid = grid
        while not list(grid.get_node_ids()) and not self._ended.wait(0.05):
            pass
        self._ready.set()
        self._ended.wait()


def simulation_client(take: Take) -> ClientApp:
    """Return the client app that runs in the actors."""
    from flwr.clientapp import ClientApp

    app = ClientApp()
    app.train()(functools.partial(_answer, take))
    return app


def quiet_environment() -> None:
    """Switch off the telemetry of Flower and Ray, unless the user's environment sets it."""
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)


_QUIET: Mapping[str, str] = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS": "0",
}


def _answer(take: Take, message: Message, context: Context) -> Message:
    from flwr.app import Message

    request, memory = read_request(message.content)
    answer, kept = take(request, memory)
    return Message(write_answer(answer, kept), reply_to=message)


def _backend(resources: Resources) -> dict[str, dict[str, object]]:
    """Return Flower's backend configuration.

    Ray restarts an actor that died, so that only the turn under way is lost.
    """
    each: dict[str, object] = {
        "num_cpus": resources.cpus,
        "num_gpus": resources.gpus,
        "max_restarts": -1,
    }
    start: dict[str, object] = {"log_to_driver": False, "logging_level": "error"}
    if resources.address is not None:
        return {"client_resources": each, "init_args": start | {"address": resources.address}}
    here = {"num_cpus": max(1, round(resources.actors * resources.cpus))}
    return {"client_resources": each, "init_args": start | here | {"include_dashboard": False}}


def _check_cluster(address: str | None) -> None:
    """Check that a cluster accepts connections, because Ray itself gives up only after minutes.

    Raises:
      EngineError: if the connection fails.
    """
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        return  # "auto" and the like, which Ray resolves itself
    try:
        socket.create_connection((host.strip("[]"), int(port)), _CONNECT_SECONDS).close()
    except OSError as error:
        raise EngineError(
            f"engine.ray: no cluster answers at {address}: {error}. Start one there with `ray "
            "start --head`, or leave the key out to start Ray on this machine"
        ) from error


def _root(error: BaseException | None) -> str:
    """Return the message of the first cause of an error."""
    while error is not None and error.__cause__ is not None:
        error = error.__cause__
    return str(error).rstrip(".") if error is not None else "without a reason"


@contextlib.contextmanager
def _quiet_logs() -> Iterator[None]:
    """Keep Flower's log off the terminal; relevant problems arrive as replies and errors."""
    import flwr.supercore  # noqa: F401  # its import sets the logger up

    flower = logging.getLogger("flwr")
    before = flower.level
    flower.setLevel(logging.CRITICAL)
    for handler in flower.handlers:
        if isinstance(handler, logging.StreamHandler) and handler.stream is sys.stdout:
            handler.setStream(sys.stderr)
    try:
        yield
    finally:
        flower.setLevel(before)
