"""Which key each site has: a file of the server's operator, and the check of a node against it.

    sites.toml    [sites]
                  hospital-a = "SHA256:qk3..."     as `ssh-keygen -lf hospital-a.pub` prints it

    node ──Flower: the key it signed in with──> fingerprint ──table──> the name that it may have

A site says its name itself, so a name counts only together with its key. Flower checks that a node
has the key under which it is registered; this table says whose key that is.
"""

from __future__ import annotations

import base64
import hashlib
import re
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path

import tomli_w

from fedpeft.core.errors import ConfigError
from fedpeft.engines.flower.sites import Identities
from fedpeft.runs.files import write_text

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_FINGERPRINT = re.compile(r"SHA256:[A-Za-z0-9+/]{43}")


def fingerprint(public_key: bytes) -> str:
    """Return the fingerprint of a public key in OpenSSH or PEM format, as `ssh-keygen -l` does.

    Raises:
      ValueError: if it is no public key.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization as forms

    try:
        pem = public_key.lstrip().startswith(b"-----BEGIN")
        loaded = (forms.load_pem_public_key if pem else forms.load_ssh_public_key)(public_key)
        # mypy: not every kind of key has an OpenSSH form; the others raise
        line = loaded.public_bytes(forms.Encoding.OpenSSH, forms.PublicFormat.OpenSSH)
    except (UnsupportedAlgorithm, TypeError) as error:
        raise ValueError(str(error)) from error
    digest = hashlib.sha256(base64.b64decode(line.split()[1])).digest()
    return f"SHA256:{base64.b64encode(digest).decode().rstrip('=')}"


def read_public_key(file: Path) -> bytes:
    """Read a site's public key file; return the key as PEM, as Flower registers it.

    Raises:
      ConfigError: if it does not hold a public key that a SuperNode can use.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization as forms
    from cryptography.hazmat.primitives.asymmetric import ec

    advice = "make a pair with `ssh-keygen -t ecdsa -b 384 -N '' -f SITE` and give SITE.pub"
    try:
        content = file.read_bytes()
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}; {advice}") from error
    if b"PRIVATE KEY" in content:
        raise ConfigError(f"{file}: is a private key, which its site never gives away; {advice}")
    try:
        loaded = forms.load_ssh_public_key(content)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ConfigError(f"{file}: is no public key in OpenSSH format; {advice}") from error
    if not isinstance(loaded, ec.EllipticCurvePublicKey):
        kind = content.split()[0].decode()
        raise ConfigError(f"{file}: found a key of type {kind}, allowed is ecdsa; {advice}")
    return loaded.public_bytes(forms.Encoding.PEM, forms.PublicFormat.SubjectPublicKeyInfo)


def read_bindings(file: Path) -> dict[str, str]:
    """Read a table of sites; return name -> fingerprint.

    Raises:
      ConfigError: if it cannot be read, holds anything else, or gives two sites one key.
    """
    try:
        table = tomllib.loads(file.read_text("utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(
            f"{file}: there is no such table of sites; admit each site with `fedpeft admit`"
        ) from error
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{file}: cannot be read as a table of sites: {error}") from error
    found = table.get("sites")
    if set(table) != {"sites"} or not isinstance(found, dict):
        raise ConfigError(
            f"{file}: found {', '.join(table) or 'nothing'}; allowed is [sites] alone"
        )
    owners: dict[str, str] = {}
    for name, key in found.items():
        if not _NAME.fullmatch(name) or not isinstance(key, str) or not _FINGERPRINT.fullmatch(key):
            raise ConfigError(
                f'{file}: found {name} = {key!r}; allowed is NAME = "SHA256:...", as `ssh-keygen '
                "-lf SITE.pub` prints it"
            )
        if key in owners:
            raise ConfigError(
                f"{file}: {owners[key]} and {name} have the same key; each needs its own"
            )
        owners[key] = name
    return {name: key for key, name in owners.items()}


def bind(file: Path, name: str, key: str, *, replace: bool = False) -> None:
    """Add a site to the table, which is made if there is none.

    Args:
      file: the table.
      name: the site's name.
      key: the fingerprint of its key.
      replace: give a site that is there already another key.

    Raises:
      ConfigError: if the name or the key belongs to another, or the table cannot be read.
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"site: found {name[:80]!r}; allowed are letters, digits, '.', '_' and '-', at most 64"
        )
    bound = read_bindings(file) if file.exists() else {}
    if bound.get(name, key) != key and not replace:
        raise ConfigError(
            f"{file}: site {name} has the key {bound[name]}, the new one is {key}; if the site "
            "itself changed its key, say --replace"
        )
    other = next((each for each, owned in bound.items() if owned == key and each != name), None)
    if other is not None:
        raise ConfigError(f"{file}: {key} is the key of {other} already; each site has its own")
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_text(file, tomli_w.dumps({"sites": dict(sorted({**bound, name: key}.items()))}))


def identities(file: Path, keys: Callable[[], Mapping[int, str]]) -> Identities:
    """Return the check of nodes against a table, which is read anew each time.

    Args:
      file: the table.
      keys: returns node -> fingerprint of the key under which the SuperLink knows it.

    Raises:
      ConfigError: if the table cannot be read.
    """
    known: dict[int, str] = {}

    def key_of(node: int) -> str:
        if node not in known:  # a node keeps its key as long as it is registered
            known.update(keys())
        return known.get(node, "")

    def owner(node: int) -> str:
        try:
            bound = read_bindings(file)
        except ConfigError:
            return ""
        return next((name for name, own in bound.items() if own == key_of(node)), "")

    def complaint(name: str, node: int) -> str:
        try:
            own = read_bindings(file).get(name)
        except ConfigError as error:  # nobody is taken at their word meanwhile
            return str(error)
        key = key_of(node)
        if own is None:
            return (
                f"site {name!r} has no key in {file.name} of the server; its operator admits it "
                f"with `fedpeft admit` (this node's key is {key or 'not known'})"
            )
        if key == own:
            return ""
        whose = f"the key of {owner(node)!r}" if owner(node) else "of no site there"
        return (
            f"site {name!r} has another key: this node's is {key or 'not known'}, {whose}; "
            f"{file.name} of the server has {own}"
        )

    return Identities(frozenset(read_bindings(file)), complaint, owner)
