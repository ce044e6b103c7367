"""A site's two processes: its own worker, and the SuperNode that is connected to the server.

    fedpeft node ──┬── worker (backbone, data)          started again after a crash
                   └── SuperNode ── app ──> worker's socket

Both end with this process, however it ends. The bundles that a server sends run below the
SuperNode, and only if one of the site's trusted keys has signed them.
"""

from __future__ import annotations

import base64
import hashlib
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedpeft.core.errors import ConfigError
from fedpeft.federation import supernode_program
from fedpeft.federation.processes import QUIET, Child, free_port, program

_FORGOTTEN = 100.0  # a server forgets a node that was killed after two heartbeats of 30 s
_NOT_ADMITTED = "Exit Code: 305"


@dataclass(frozen=True)
class NodeSettings:
    """The settings of a SuperNode.

    Attributes:
      address: HOST:PORT of the SuperLink.
      home: folder for Flower's own files.
      config: settings for the app, such as where the worker listens.
      root_certificates: file that the server's certificate is checked against; None for no TLS.
      private_key: this node's key file; None joins without authentication.
      trusted: file of trusted entities; None runs any bundle.
      port: on loopback, of its interface for the app; None takes a free one.
    """

    address: str
    home: Path
    config: Mapping[str, str | float]
    root_certificates: str | None = None
    private_key: str | None = None
    trusted: Path | None = None
    port: int | None = None


def key_id(public_key: str) -> str:
    """Return the name of an `ssh-ed25519` public key, the same at every site and signer.

    Raises:
      ConfigError: if it is not such a key.
    """
    parts = public_key.split()
    try:
        data = base64.b64decode(parts[1], validate=True) if parts[0] == "ssh-ed25519" else b""
    except (IndexError, ValueError):
        data = b""
    if len(data) != 51:
        raise ConfigError(
            f"trusted key: found {public_key[:60]!r}; allowed is a line `ssh-ed25519 AAAA...`, as "
            "`ssh-keygen -t ed25519` writes into the .pub file"
        )
    return f"fpk_{hashlib.sha256(data).hexdigest()[:32]}"


def trusted_entities(keys: Sequence[str]) -> str:
    """Return keys, given as lines or files, as Flower's table of trusted entities (YAML).

    Raises:
      ConfigError: if one is not an Ed25519 public key.
    """
    lines = [key if key.startswith("ssh-") else Path(key).read_text("utf-8") for key in keys]
    return "".join(f"{key_id(line)}: {' '.join(line.split()[:2])}\n" for line in lines)


def supernode(settings: NodeSettings) -> Child:
    """Return the SuperNode's command and environment.

    Raises:
      EngineError: if Flower is not installed here.
    """
    executable = program("flower-supernode")
    config = " ".join(f"{name}={_literal(value)}" for name, value in settings.config.items())
    command = [sys.executable, "-P", "-m", supernode_program.__name__]
    command += ["--superlink", settings.address, "--node-config", config]
    command += ["--host", "127.0.0.1", "--port", str(settings.port or free_port())]
    command += [] if settings.root_certificates else ["--insecure"]
    for option, file in (
        ("--root-certificates", settings.root_certificates),
        ("--auth-supernode-private-key", settings.private_key),
        ("--trusted-entities", settings.trusted),
    ):
        command += [option, str(file)] if file is not None else []
    environment = {
        "FLWR_HOME": str(settings.home),
        **QUIET,
        "PATH": f"{Path(executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
    }
    patience = {_NOT_ADMITTED: _FORGOTTEN}
    return Child("supernode", command, environment, _ADVICE, patience, needs_helpers=True)


_ADVICE: Mapping[str, str] = {
    "CERTIFICATE_VERIFY_FAILED": "The server's certificate is not one that "
    "superlink.root_certificates vouches for; `fedpeft node SITE.toml --check` says why.",
    _NOT_ADMITTED: "The server does not admit this site. Is its key registered there (`fedpeft "
    "admit NAME NAME.pub --to SERVER`), and not in use by another node? A node that was killed is "
    "forgotten after a minute.",
    "address already in use": "Leave superlink.runtime_port out, or choose a free one.",
}


def _literal(value: str | float) -> str:
    """Return a value as TOML for Flower's `--node-config`.

    Raises:
      ConfigError: if the value holds characters that Flower cannot read there.
    """
    if isinstance(value, str) and (set(value) & {'"', "'", "\\", "\n"} or not value.isprintable()):
        raise ConfigError(f"{value!r}: quotes and backslashes cannot stand in a path of a site")
    return f'"{value}"' if isinstance(value, str) else repr(value)
