"""A server's own folder: the table of its sites, and how its SuperLink is reached on this machine.

DIR/sites.toml   which key each site has (`fedpeft admit`)
DIR/link.json    {"address": "127.0.0.1:8000", "root_certificates": ..., "keys": true}
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from fedpeft.core.errors import ConfigError
from fedpeft.federation.control import Link
from fedpeft.runs.files import read_object, write_json

SERVER = "FEDPEFT_SERVER"
"""Environment of a SuperLink that `fedpeft server` started: the server's folder."""


@dataclass(frozen=True)
class ServerFolder:
    """What the folder of a server says.

    Attributes:
      link: how its SuperLink is reached from this machine.
      sites: the table of sites; None where sites need no key.
    """

    link: Link
    sites: Path | None


def write_folder(folder: Path, link: Link, *, keys: bool) -> None:
    """Write how a server's SuperLink is reached, and whether its sites need keys."""
    said = {"address": link.address, "root_certificates": link.root_certificates, "keys": keys}
    write_json(folder / "link.json", said)


def read_folder(folder: Path) -> ServerFolder:
    """Read the folder of a server.

    Raises:
      ConfigError: if it is none.
    """
    found = read_object(folder / "link.json") or {}
    address, root = found.get("address"), found.get("root_certificates")
    if not isinstance(address, str) or not isinstance(root, str | None):
        raise ConfigError(
            f"{folder}: is not the folder of a server; `fedpeft server {folder}` makes it"
        )
    sites = folder / "sites.toml" if found.get("keys", True) else None
    return ServerFolder(Link(address, root), sites)


def folder_of_this_superlink() -> ServerFolder | None:
    """Return the folder of the server below whose SuperLink this process runs; None: not known.

    Raises:
      ConfigError: if the folder is none.
    """
    named = os.environ.get(SERVER)
    return read_folder(Path(named)) if named else None
