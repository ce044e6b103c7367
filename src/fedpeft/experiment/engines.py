"""Engines: their part of the experiment file, and the table of how they differ.

    engine.name  ->  ENGINES  ->  EngineKind: summary, checks, workers, where the clients live

Another engine is a row here, its builder (`build/engine.py`, or `launch/start.py` if its server
runs elsewhere) and its own file in `engines/`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from fedpeft.core.text import is_loopback
from fedpeft.experiment.fields import Above, NotNegative, Port, Positive, Table

WAIT = 300.0
"""Seconds to wait for all sites where `engine.wait` is not set."""

DEADLINE = 3600.0
"""Seconds that a site may take for a turn where `engine.deadline` is not set."""

PLACE = (
    "workers", "deadline", "client_cpus", "client_gpus", "ray", "superlink", "root_certificates",
    "insecure", "wait", "retries", "signatures", "store_port",
)  # fmt: skip
"""Keys of `[engine]` about place and patience, which cannot change the numbers of a reply."""


class EngineConfig(Table):
    """`[engine]`: the engine that runs the clients."""

    name: str = "local"
    """The engine, see `fedpeft list engines`."""
    workers: Positive | None = None
    """Number of worker processes; one for each core by default."""
    clients_per_pass: Positive | Literal["measure"] | None = None
    """Clients that train in one pass; from a table by default, `measure`: the fastest number
    here."""
    device: str = "cpu"
    """`cpu`, `cuda` or `cuda:N`."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """`bf16`: autocast, on GPUs only."""
    deadline: Above | None = None
    """Flower: longest turn of a client, in seconds; 3600 for sites, else unlimited."""
    client_cpus: Above | None = None
    """`flower-simulation`: cores of one Ray actor; 1 by default."""
    client_gpus: NotNegative | None = None
    """`flower-simulation`: GPUs of one Ray actor, such as 0.25; 0 by default."""
    ray: str | None = None
    """`flower-simulation`: address of a Ray cluster; by default Ray is started here."""
    superlink: str | None = None
    """`flower`: HOST:PORT of the SuperLink that `fedpeft run` submits to."""
    root_certificates: str | None = None
    """`flower`: certificate file of the authority that signed the SuperLink's certificate."""
    insecure: bool = False
    """`flower`: true allows plain text to an address that is not loopback."""
    wait: Above | None = None
    """`flower`: seconds to wait for all sites before round 1; 300 by default."""
    retries: Annotated[int, Field(ge=0)] | None = None
    """`flower`: submissions in a row that may fail without a new round; 3 by default."""
    signatures: list[str] | None = None
    """`flower`: files from `fedpeft sign`, for sites that run only signed bundles."""
    store_port: Port | None = None
    """`flower`: loopback port from which the SuperLink fetches a signed bundle; 8090 by default."""


@dataclass(frozen=True)
class EngineKind:
    """One engine.

    Attributes:
      summary: one line.
      needs: packages that must be installed.
      problems: yields what is wrong with `[engine]` for this engine alone, a line each.
      shares_passes: several clients can train in one pass.
      in_process: clients live in this process and in workers forked from it: objects of the caller
        reach them, runs side by side can share the cores, and on a GPU there is one worker.
      deployed: the rounds run at a server elsewhere, on data of sites that this process never sees;
        else the run is built in this process.
    """

    summary: str
    needs: tuple[str, ...] = ()
    problems: Callable[[EngineConfig], Iterable[str]] = lambda engine: ()
    shares_passes: bool = False
    in_process: bool = False
    deployed: bool = False

    def workers(self, engine: EngineConfig, most: int) -> int:
        """Return the number of worker processes, where more than `most` are of no use."""
        return 1 if self.in_process and engine.device != "cpu" else engine.workers or most


def _many_on_a_gpu(engine: EngineConfig) -> Iterator[str]:
    if engine.device.partition(":")[0] == "cuda" and (engine.workers or 1) > 1:
        yield f"engine.workers: found {engine.workers} with a GPU; allowed is 1"


def _open_network(engine: EngineConfig) -> Iterator[str]:
    """Yield what is wrong with a SuperLink: no address, or a network without TLS."""
    address, safe = engine.superlink or "", engine.root_certificates is not None
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        yield (
            f"engine.superlink: found {address!r}; a deployment needs the SuperLink's HOST:PORT, "
            "such as 127.0.0.1:8000"
        )
    elif not safe and not engine.insecure and not is_loopback(address):
        yield (
            f"engine.root_certificates: not set, and {address} is not this machine: anyone on the "
            "network could read and change every message. Name the file of the certificate "
            "authority, or set engine.insecure = true to send in plain text"
        )
    if safe and engine.insecure:
        yield "engine.insecure: found true with engine.root_certificates; set one of the two"


ENGINES: Mapping[str, EngineKind] = {
    "local": EngineKind(
        "worker processes on this machine",
        problems=_many_on_a_gpu,
        shares_passes=True,
        in_process=True,
    ),
    "flower-simulation": EngineKind(
        "Ray actors through Flower's simulation, here or on a cluster", needs=("flwr", "ray")
    ),
    "flower": EngineKind(
        "sites behind a Flower SuperLink, over TLS",
        needs=("flwr",),
        problems=_open_network,
        deployed=True,
    ),
}
