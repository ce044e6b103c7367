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
from fedpeft.federation.bundle import STORE_PORT
from fedpeft.federation.certificates import pair_problems
from fedpeft.federation.control import Link
from fedpeft.federation.gateway import Gateway, configuration, gateway
from fedpeft.federation.processes import QUIET, Child, program
from fedpeft.federation.server_folder import SERVER, write_folder
from fedpeft.runs.files import write_text


@dataclass(frozen=True)
class ServerSettings:
    """The settings of a server.

    Attributes:
      folder: the server's folder, made private.
      listen: HOST:PORT of the gateway.
      port: the SuperLink's, on loopback.
      store_port: where the SuperLink fetches signed bundles, on loopback.
      certificates: a folder with `ca.crt`, `server.crt` and `server.key` for the gateway, and
        `loopback.crt` and `loopback.key` for the SuperLink; None with `local`.
      local: sites on this machine only, which need neither TLS nor a key.
    """

    folder: Path
    listen: str = "0.0.0.0:8443"
    port: int = 8000
    store_port: int = STORE_PORT
    certificates: Path | None = None
    local: bool = False


def server_problems(settings: ServerSettings, part: str) -> list[str]:
    """Return what is wrong with the settings of a part of a server, a sentence each."""
    found, folder = [], settings.certificates
    host, _, port = settings.listen.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        found.append(f"--listen: found {settings.listen!r}; allowed is HOST:PORT")
    if settings.local and folder is not None:
        found.append("--local: found with --certificates; say one of the two")
    if settings.local:
        return found
    if folder is None:
        return [
            *found,
            "--certificates: not set; name the folder that deploy/certificates.sh wrote, or say "
            "--local for sites on this machine alone",
        ]
    if folder.resolve().is_relative_to(settings.folder.resolve()):
        found.append(
            f"--certificates: {folder} lies in the server's folder {settings.folder}, where the "
            "code of a run works; keep keys elsewhere"
        )
    pairs = {"server": part != "superlink", "loopback": part != "gateway"}
    for name in (name for name, needed in pairs.items() if needed):
        files = folder / f"{name}.crt", folder / f"{name}.key"
        found += pair_problems(*files, "--certificates")
    return found


def children(settings: ServerSettings, part: str) -> list[Child]:
    """Make the server's folder, and return the processes to follow.

    Args:
      settings: of the server.
      part: `all`, `superlink` or `gateway`.

    Raises:
      ConfigError: if the folder cannot be made, or the settings are wrong.
      EngineError: if Flower or nginx is not installed here.
    """
    problems = server_problems(settings, part)
    if problems:
        raise ConfigError(listed("server", problems))
    try:
        for name in (".", "superlink", "gateway"):
            (settings.folder / name).mkdir(parents=True, exist_ok=True, mode=0o700)
            (settings.folder / name).chmod(0o700)
    except OSError as error:
        raise ConfigError(f"{settings.folder}: cannot be made: {error.strerror}") from error
    started = [_superlink(settings)] if part != "gateway" else []
    if part == "superlink" or settings.local or settings.certificates is None:
        return started
    return [*started, _gateway(settings, settings.certificates.resolve())]


def _superlink(settings: ServerSettings) -> Child:
    """Return Flower's server: on loopback, its files for their owner only."""
    executable, folder = program("flower-superlink"), settings.folder.resolve()
    address, authority = f"127.0.0.1:{settings.port}", None
    command = [executable, "--host", "127.0.0.1", "--port", str(settings.port)]
    command += ["--database", "state.db", "--disable-runtime-dependency-installation"]
    if settings.certificates is None:
        command.append("--insecure")
    else:
        own = settings.certificates.resolve()
        authority = str(own / "ca.crt")
        command += ["--enable-supernode-auth", "--ssl-ca-certfile", authority]
        command += ["--ssl-certfile", f"{own}/loopback.crt", "--ssl-keyfile", f"{own}/loopback.key"]
    write_folder(folder, Link(address, authority), keys=not settings.local)
    environment = {
        **QUIET,
        "FLWR_HOME": str(folder / "superlink" / "flower"),
        "FLWR_SUPERGRID_API_URL": f"http://127.0.0.1:{settings.store_port}",
        "NO_PROXY": "127.0.0.1",
        "PATH": f"{Path(executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
        SERVER: str(folder),
    }
    advice = {"address already in use": "Choose another --port."}
    work = folder / "superlink"
    return Child(
        "superlink", command, environment, advice, folder=work, mask=0o077, needs_helpers=True
    )


def _gateway(settings: ServerSettings, certificates: Path) -> Child:
    folder = settings.folder.resolve() / "gateway"
    chosen = Gateway(settings.listen, settings.port, certificates, folder)
    file = folder / "nginx.conf"
    write_text(file, configuration(chosen))
    return gateway(chosen, file)
