"""Admitting a site: its key is registered at the SuperLink, and bound to its name.

SITE, SITE.pub ──> SuperLink: this key may connect
              └──> sites.toml: and it is SITE
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from fedpeft.core.errors import ConfigError
from fedpeft.federation.control import Control
from fedpeft.federation.server_folder import read_folder
from fedpeft.federation.site_keys import bind, fingerprint, read_public_key


def admit(site: str, key: Path, folder: Path, *, replace: bool = False) -> tuple[str, bool]:
    """Admit a site.

    Args:
      site: its name.
      key: its public key file.
      folder: folder of the server.
      replace: give the site another key than it had.

    Returns:
      the key's fingerprint, and whether it is new at the SuperLink.

    Raises:
      ConfigError: if the folder, the name or the key is wrong, or belongs to another.
      EngineError: if the SuperLink cannot be reached, or refuses the key.
    """
    public = read_public_key(key)
    own = read_folder(folder)
    if own.sites is None:
        raise ConfigError(f"{folder}: this server was started with --local: its sites need no key")
    name = fingerprint(public)
    bind(own.sites, site, name, replace=replace)  # first: a key without a name is no site
    with contextlib.closing(Control(own.link)) as control:
        return name, control.register(public)
