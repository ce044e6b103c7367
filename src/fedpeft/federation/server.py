"""A server's two processes: Flower's SuperLink on loopback, and the gateway that sites reach.

    fedpeft server DIR ──┬── SuperLink, 127.0.0.1:8000     DIR/superlink/state.db   0600
                         └── gateway, 0.0.0.0:8443, TLS    DIR/gateway/nginx.conf
                             DIR/sites.toml                which key each site has

Whoever reaches the SuperLink controls it, so that it listens on loopback only. Its working folder
holds no key of the server: the code of a run starts there.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from fedpeft.core.errors import ConfigError
from fedpeft.experiment.schema import listed
from fedpeft.federation import site_keys
from fedpeft.federation.bundle import STORE_PORT
from fedpeft.federation.certificates import pair_problems
from fedpeft.federation.gateway import Gateway, configuration, gateway
from fedpeft.federation.processes import QUIET, Child, program
from fedpeft.runs.files import write_text

__all__ = ["SITES", "ServerSettings", "children", "server_problems"]

SITES = "sites.toml"
"""The table of sites and their keys, in a server's folder."""


@dataclass(frozen=True)
class ServerSettings:
    """The settings of a server.

    Attributes:
      folder: the server's folder, made private.
      listen: HOST:PORT of the gateway.
      port: the SuperLink's, on loopback.
      store_port: where the SuperLink fetches signed bundles, on loopback.
      certificate: PEM file of the server's certificate; None without a gateway.
      key: PEM file of its private key; None without a gateway.
      local: sites on this machine only, which need neither TLS nor a key.
    """

    folder: Path
    listen: str = "0.0.0.0:8443"
    port: int = 8000
    store_port: int = STORE_PORT
    certificate: Path | None = None
    key: Path | None = None
    local: bool = False


def server_problems(settings: ServerSettings, *, gateway: bool) -> list[str]:
    """Return what is wrong with the settings of a server, a sentence each.

    Args:
      settings: of the server.
      gateway: whether this process starts the gateway.
    """
    found = []
    host, _, port = settings.listen.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        found.append(f"--listen: found {settings.listen!r}; allowed is HOST:PORT")
    if settings.local or not gateway:
        return found
    if settings.certificate is None or settings.key is None:
        return [
            *found,
            "--certificates: not set; name the folder with server.crt and server.key that "
            "deploy/certificates.sh wrote, or say --local for sites on this machine alone",
        ]
    inside = settings.folder.resolve()
    if settings.key.resolve().is_relative_to(inside):
        found.append(
            f"--certificates: {settings.key} lies in the server's folder {settings.folder}, where "
            "the code of a run works; keep keys elsewhere"
        )
    return [*found, *pair_problems(settings.certificate, settings.key, "--certificates")]


def children(settings: ServerSettings, part: str) -> list[Child]:
    """Make the server's folder, and return the processes to follow.

    Args:
      settings: of the server.
      part: `all`, `superlink` or `gateway`.

    Raises:
      ConfigError: if the folder cannot be made, or the settings are wrong.
      EngineError: if Flower or nginx is not installed here.
    """
    with_gateway = part != "superlink" and not settings.local
    problems = server_problems(settings, gateway=with_gateway)
    if problems:
        raise ConfigError(listed("server", problems))
    try:
        for folder in (
            settings.folder,
            *(settings.folder / name for name in ("superlink", "gateway")),
        ):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            folder.chmod(0o700)
    except OSError as error:
        raise ConfigError(f"{settings.folder}: cannot be made: {error.strerror}") from error
    started = [_superlink(settings)] if part != "gateway" else []
    return [*started, *([_gateway(settings)] if with_gateway else [])]


def _superlink(settings: ServerSettings) -> Child:
    """Return Flower's server: on loopback, its files for their owner only."""
    executable, folder = program("flower-superlink"), settings.folder.resolve()
    command = [executable, "--insecure", "--host", "127.0.0.1", "--port", str(settings.port)]
    command += ["--database", "state.db", "--disable-runtime-dependency-installation"]
    command += [] if settings.local else ["--enable-supernode-auth"]
    environment = {
        **QUIET,
        "FLWR_HOME": str(folder / "superlink" / "flower"),
        "FLWR_SUPERGRID_API_URL": f"http://127.0.0.1:{settings.store_port}",
        "NO_PROXY": "127.0.0.1",
        "PATH": f"{Path(executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
        site_keys.ADDRESS: f"127.0.0.1:{settings.port}",
    }
    if not settings.local:
        environment[site_keys.TABLE] = str(folder / SITES)
    advice = {"address already in use": "Choose another --port."}
    work = folder / "superlink"
    return Child("superlink", command, environment, advice, folder=work, mask=0o077)


def _gateway(settings: ServerSettings) -> Child:
    assert settings.certificate is not None and settings.key is not None, "checked before"
    folder = settings.folder.resolve() / "gateway"
    chosen = Gateway(
        settings.listen,
        settings.port,
        settings.certificate.resolve(),
        settings.key.resolve(),
        folder,
    )
    file = folder / "nginx.conf"
    write_text(file, configuration(chosen))
    return gateway(chosen, file)
