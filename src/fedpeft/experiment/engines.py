"""Engines: their part of the experiment file, and all in which they differ before one is built.

    engine.name  ->  ENGINES  ->  EngineKind: summary, checks, workers, where the clients live

Another engine is a row here, its builder (`build/engine.py`, or `launch/start.py` if its server
runs elsewhere) and its own file in `engines/`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BaseModel, Field

from fedpeft.core.words import is_loopback
from fedpeft.experiment.fields import STRICT, Above, NotNegative, Port, Positive

__all__ = ["DEADLINE", "ENGINES", "PLACE", "WAIT", "EngineConfig", "EngineKind"]

WAIT = 300.0
"""Seconds to wait for all sites, where `engine.wait` says nothing."""

DEADLINE = 3600.0
"""Seconds that a site may take for a turn, where `engine.deadline` says nothing."""

PLACE = (
    "workers", "deadline", "client_cpus", "client_gpus", "ray", "superlink", "root_certificates",
    "insecure", "wait", "retries", "signatures", "store_port",
)  # fmt: skip
"""Keys of `[engine]` that say where and how patiently, and cannot change a reply's numbers."""


class EngineConfig(BaseModel):
    """`[engine]`: where clients live."""

    model_config = STRICT
    name: str = Field("local", description="see `fedpeft list engines`")
    workers: Positive | None = Field(None, description="processes; one a core by default")
    clients_per_pass: Positive | Literal["measure"] | None = Field(
        None,
        description="clients that train in one pass; from a table by default, or `measure`",
    )
    device: str = Field("cpu", description="`cpu`, `cuda` or `cuda:N`")
    precision: Literal["fp32", "bf16"] = Field("fp32", description="bf16: autocast, GPUs only")
    deadline: Above | None = Field(
        None,
        description="Flower: longest turn of a client, in seconds; 3600 at sites, else none",
    )
    client_cpus: Above | None = Field(
        None, description="flower-simulation: cores of one Ray actor; 1 by default"
    )
    client_gpus: NotNegative | None = Field(
        None, description="flower-simulation: GPUs of one Ray actor, such as 0.25; 0 by default"
    )
    ray: str | None = Field(
        None, description="flower-simulation: address of a Ray cluster; Ray is started here else"
    )
    superlink: str | None = Field(
        None, description="flower: HOST:PORT of the SuperLink that `fedpeft run` submits to"
    )
    root_certificates: str | None = Field(
        None, description="flower: file of the certificate authority that the SuperLink's is from"
    )
    insecure: bool = Field(
        False, description="flower: true allows plain text to an address that is not loopback"
    )
    wait: Above | None = Field(
        None, description="flower: seconds to wait for all sites before round 1; 300 by default"
    )
    retries: Annotated[int, Field(ge=0)] | None = Field(
        None, description="flower: submit so often again without a new round in between; 3"
    )
    signatures: list[str] | None = Field(
        None, description="flower: files of `fedpeft sign`, for sites that run signed bundles only"
    )
    store_port: Port | None = Field(
        None, description="flower: on loopback, where the SuperLink fetches a signed bundle; 8090"
    )


def _one_a_core(engine: EngineConfig, most: int) -> int:
    return engine.workers or most


def _one_on_a_gpu(engine: EngineConfig, most: int) -> int:
    return _one_a_core(engine, most) if engine.device == "cpu" else 1


def _no_problem(engine: EngineConfig) -> Iterator[str]:
    yield from ()


@dataclass(frozen=True)
class EngineKind:
    """One engine.

    Attributes:
      summary: one line.
      needs: packages that must be installed.
      problems: what is wrong with `[engine]` for this engine alone, a line each.
      workers: from `[engine]` and the most that are of use to the number of worker processes.
      shares_passes: several clients can train in one pass.
      in_process: clients live in this process and in workers forked from it; objects of the
        caller's reach them, and runs side by side can share the cores.
      deployed: the rounds run at a server elsewhere, on data of sites that this process never sees;
        else the run is built in this process.
    """

    summary: str
    needs: tuple[str, ...] = ()
    problems: Callable[[EngineConfig], Iterator[str]] = _no_problem
    workers: Callable[[EngineConfig, int], int] = _one_a_core
    shares_passes: bool = False
    in_process: bool = False
    deployed: bool = False


def _many_on_a_gpu(engine: EngineConfig) -> Iterator[str]:
    if engine.device.partition(":")[0] == "cuda" and (engine.workers or 1) > 1:
        yield f"engine.workers: found {engine.workers} with a GPU; allowed is 1"


def _open_network(engine: EngineConfig) -> Iterator[str]:
    """Yield what a SuperLink lacks: an address, and a network that is not open."""
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
            "way could read and change every message. Name the file of the certificate authority, "
            "or set engine.insecure = true to send in plain text"
        )
    if safe and engine.insecure:
        yield "engine.insecure: found true with engine.root_certificates; set one of the two"


ENGINES: Mapping[str, EngineKind] = {
    "local": EngineKind(
        "worker processes on this machine",
        problems=_many_on_a_gpu,
        workers=_one_on_a_gpu,
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
