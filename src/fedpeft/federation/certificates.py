"""Keys and certificates read before anything is started: what each file is, and whether two fit.

file ──> private key | public key | certificate | neither      each problem is one sentence
"""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from fedpeft.core.errors import ConfigError
from fedpeft.experiment.site_file import SiteConfig
from fedpeft.federation.supernode import key_id

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509 import Certificate


_MAKE_KEY = "make one with `ssh-keygen -t ecdsa -b 384 -N '' -f SITE`"
_AUTHORITY = "name the ca.crt that came from the server's operator"
_KINDS = {
    b"-----BEGIN CERTIFICATE REQUEST": "a certificate request",
    b"-----BEGIN CERTIFICATE": "a certificate",
    b"-----BEGIN PUBLIC KEY": "a public key",
    b"PRIVATE KEY-----": "a private key",
    b"ssh-": "a public key",
    b"ecdsa-": "a public key",
}


def link_problems(site: SiteConfig) -> list[str]:
    """Return what is wrong with the keys and certificates of a site file, a sentence each."""
    link, found = site.superlink, []
    if link.root_certificates is not None:
        file = Path(link.root_certificates)
        found += list(_authority_problems("superlink.root_certificates", file))
    if link.private_key is not None:
        found += list(_key_problems("superlink.private_key", Path(link.private_key)))
    if link.private_key is not None and link.root_certificates is None:
        found.append(
            "superlink.root_certificates: not set, and a SuperNode uses its private key over TLS "
            f"only; {_AUTHORITY}, or leave superlink.private_key out"
        )
    for place, key in enumerate(link.trusted_keys):
        found += list(_signer_problems(f"superlink.trusted_keys[{place}]", key))
    return found


def pair_problems(certificate: Path, key: Path, where: str) -> list[str]:
    """Return what is wrong with a server's certificate and its private key.

    Args:
      certificate: PEM file.
      key: PEM file.
      where: the option or key that names them.
    """
    from cryptography.hazmat.primitives import serialization as forms

    shown = _content(where, certificate, "a certificate"), _content(where, key, "a private key")
    problems = [each for each in shown if isinstance(each, str)]
    if problems:
        return problems
    problems = [*_mode_problems(where, key)]
    chain = _certificates(where, certificate)
    if isinstance(chain, str):
        return [*problems, chain]
    problems += list(_date_problems(where, certificate, chain[0]))
    try:
        private = forms.load_pem_private_key(key.read_bytes(), password=None)
    except (ValueError, TypeError) as error:
        return [
            *problems,
            f"{where}: {key} cannot be read as a private key without a password: {error}",
        ]
    own, other = (
        each.public_bytes(forms.Encoding.DER, forms.PublicFormat.SubjectPublicKeyInfo)
        for each in (private.public_key(), chain[0].public_key())
    )
    if own != other:
        problems.append(
            f"{where}: {key} is not the private key of {certificate}; take both from one folder of "
            "deploy/certificates.sh"
        )
    return problems


def _authority_problems(where: str, file: Path) -> Iterator[str]:
    content = _content(where, file, "a certificate", _AUTHORITY)
    chain = content if isinstance(content, str) else _certificates(where, file)
    if isinstance(chain, str):
        yield chain
        return
    for one in chain:
        yield from _date_problems(where, file, one)
        if not _may_sign(one):
            yield (
                f"{where}: {file} is the certificate of {one.subject.rfc4514_string()}, which is "
                f"no authority; {_AUTHORITY}"
            )


def _key_problems(where: str, file: Path) -> Iterator[str]:
    """Yield what is wrong with a SuperNode's private key."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization as forms
    from cryptography.hazmat.primitives.asymmetric import ec

    content = _content(where, file, "a private key", _MAKE_KEY)
    if isinstance(content, str):
        yield content
        return
    yield from _mode_problems(where, file)
    try:
        private = forms.load_ssh_private_key(content, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        yield f"{where}: {file}: no OpenSSH key without a password: {error}; {_MAKE_KEY}"
        return
    if not isinstance(private, ec.EllipticCurvePrivateKey):
        yield f"{where}: {file} is no ECDSA key, the only kind that a SuperNode uses; {_MAKE_KEY}"
        return
    yield from _other_half(where, file, private)


def _other_half(where: str, file: Path, private: ec.EllipticCurvePrivateKey) -> Iterator[str]:
    """Yield a problem if the public key beside a private key is another's."""
    from cryptography.hazmat.primitives import serialization as forms

    beside = file.with_name(f"{file.name}.pub")
    try:
        written = beside.read_bytes().split()[:2]
    except OSError:
        return
    line = private.public_key().public_bytes(forms.Encoding.OpenSSH, forms.PublicFormat.OpenSSH)
    if written != line.split()[:2]:
        yield (
            f"{where}: {beside} is not the public key of {file}; if the server has that one, it "
            f"refuses this site. Write it anew: ssh-keygen -y -f {file} > {beside}"
        )


def _signer_problems(where: str, key: str) -> Iterator[str]:
    try:
        key_id(key if key.startswith("ssh-") else Path(key).read_text("utf-8"))
    except ConfigError as error:
        yield f"{where}: {error}"
    except (OSError, UnicodeDecodeError):
        yield f"{where}: {key} cannot be read as a public key"


def _content(where: str, file: Path, kind: str, advice: str = "") -> bytes | str:
    """Return a file's bytes if it is of a kind, or else the problem."""
    more = f"; {advice}" if advice else ""
    try:
        content = file.read_bytes()
    except OSError as error:
        return f"{where}: {file} cannot be read ({error.strerror}){more}"
    found = next(
        (name for mark, name in _KINDS.items() if mark in content), "no key or certificate"
    )
    return content if found == kind else f"{where}: {file} is {found}, allowed is {kind}{more}"


def _certificates(where: str, file: Path) -> list[Certificate] | str:
    from cryptography import x509

    try:
        return x509.load_pem_x509_certificates(file.read_bytes())
    except ValueError as error:
        return f"{where}: {file} cannot be read as a certificate: {error}"


def _date_problems(where: str, file: Path, certificate: Certificate) -> Iterator[str]:
    now = datetime.datetime.now(datetime.UTC)
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if now > end:
        yield f"{where}: {file} expired on {end:%Y-%m-%d}; get a new one from the server's operator"
    elif now < begin:
        yield f"{where}: {file} is valid from {begin:%Y-%m-%d} on; is this machine's clock right?"


def _may_sign(certificate: Certificate) -> bool:
    from cryptography import x509

    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        return True  # an old authority without the extension; TLS decides


def _mode_problems(where: str, file: Path) -> Iterator[str]:
    mode = file.stat().st_mode & 0o777
    if mode & 0o077:
        yield (
            f"{where}: {file} has mode {mode:04o}: others can read or change the key; "
            f"chmod 600 {file}"
        )
