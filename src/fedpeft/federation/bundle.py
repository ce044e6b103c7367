"""Signed app bundles: who has vouched for the code that runs at the sites.

    key of a signer ──sign(bundle)──> signature.json ──> server ──> SuperLink ──> SuperNodes
                                                                     verify: a trusted key? else no

A SuperNode with trusted entities runs a bundle only if one of these keys has signed its very bytes.
A SuperLink takes signatures from an app store alone and not from whoever submits a run; so the
server keeps a store of one app, on loopback, for as long as it submits. The signing key need not be
on the server: a site may sign this release's bundle itself and hand over the signature.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from fedpeft.core.errors import ConfigError, EngineError
from fedpeft.federation.supernode import key_id

__all__ = ["STORE_PORT", "Signature", "Store", "read_signature", "sign", "write_signature"]

STORE_PORT = 8090
"""Where a SuperLink is told to look for signed bundles, unless told otherwise."""

_FETCH = "/hub/fetch-fab"


@dataclass(frozen=True)
class Signature:
    """That a key's owner vouches for a bundle.

    Attributes:
      key: name of the key, from its public part.
      bundle: SHA-256 (hex) of the bundle.
      signed_at: seconds since 1970.
      signature: Ed25519 over time and digest, base64 for URLs.
    """

    key: str
    bundle: str
    signed_at: int
    signature: str


def sign(bundle: bytes, key: Path) -> Signature:
    """Sign a bundle with an Ed25519 key in OpenSSH form, as `ssh-keygen -t ed25519` writes it.

    Raises:
      ConfigError: if the file holds no such key.
    """
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    try:
        private = serialization.load_ssh_private_key(key.read_bytes(), password=None)
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"{key}: cannot be read as a private key: {error}") from error
    if not isinstance(private, Ed25519PrivateKey):
        raise ConfigError(
            f"{key}: is no Ed25519 key; make one with `ssh-keygen -t ed25519 -N '' -f FILE`"
        )
    public = private.public_key().public_bytes(
        serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    )
    digest, now = hashlib.sha256(bundle), int(time.time())
    made = private.sign(now.to_bytes(8, "big") + digest.digest())
    text = base64.urlsafe_b64encode(made).rstrip(b"=").decode()
    return Signature(key_id(public.decode()), digest.hexdigest(), now, text)


def write_signature(file: Path, signature: Signature) -> None:
    """Write a signature as JSON."""
    file.write_text(json.dumps(asdict(signature), indent=2) + "\n", "utf-8")


def read_signature(file: Path) -> Signature:
    """Read what `write_signature` wrote.

    Raises:
      ConfigError: if it is no signature.
    """
    try:
        return Signature(**json.loads(file.read_text("utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"{file}: is no signature: {error}. `fedpeft sign` writes one") from error


class Store:
    """A store of one app, for the SuperLink on this machine.

    The SuperLink must have been started with `FLWR_SUPERGRID_API_URL=http://127.0.0.1:PORT`.

    Args:
      bundle: the app.
      signatures: of it; () offers it unsigned.
      port: on loopback; 0 takes a free one.

    Raises:
      ConfigError: if a signature is of another bundle.
      EngineError: if the port is taken.
    """

    def __init__(self, bundle: bytes, signatures: Sequence[Signature], *, port: int) -> None:
        digest = hashlib.sha256(bundle).hexdigest()
        for each in signatures:
            if each.bundle != digest:
                raise ConfigError(
                    f"signature of key {each.key}: is of the bundle {each.bundle[:12]}…, this "
                    f"release has {digest[:12]}…; sign it anew with the same release of fedpeft"
                )
        self._bundle = bundle
        self._signatures = signatures
        try:
            self._server = ThreadingHTTPServer(("127.0.0.1", port), self._handler())
        except OSError as error:
            raise EngineError(
                f"port {port}: cannot be used for the app's store: {error}"
            ) from error
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    @property
    def url(self) -> str:
        """Where it is."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Store:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        store = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.rfile.read(min(65_536, int(self.headers.get("Content-Length") or 0)))
                self._reply(self.path == _FETCH, json.dumps(store._offer()).encode())

            def do_GET(self) -> None:
                self._reply(self.path == "/bundle", store._bundle)

            def log_message(self, format: str, *args: object) -> None:
                """Say nothing: the run's own log says what was submitted."""

            def _reply(self, known: bool, body: bytes) -> None:
                self.send_response(200 if known else 404)
                self.send_header("Content-Length", str(len(body) if known else 0))
                self.end_headers()
                self.wfile.write(body if known else b"")

        return Handler

    def _offer(self) -> dict[str, object]:
        signed = [
            {"public_key_id": s.key, "signature": s.signature, "signed_at": s.signed_at}
            for s in self._signatures
        ]
        return {"fab_url": f"{self.url}/bundle", "verifications": signed}
