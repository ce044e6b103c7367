"""Signed app bundles: who has vouched for the code that runs at the sites.

    signer's key ──sign(bundle)──> signature.json ──> server ──> SuperLink ──> SuperNodes
                                                         signed by a trusted key? else refused

A SuperNode with trusted entities runs a bundle only if one of their keys has signed exactly these
bytes. A SuperLink accepts signatures only from an app store, not from whoever submits a run, so the
server serves a store of one app on loopback while it submits. The signing key need not be on the
server: a site may sign this release's bundle itself and hand over the signature.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from fedpeft.core.errors import ConfigError, EngineError
from fedpeft.federation.supernode import key_id

STORE_PORT = 8090
"""The default port of the store in which a SuperLink looks for signed bundles."""

_FETCH = "/hub/fetch-fab"


@dataclass(frozen=True)
class Signature:
    """A statement that a key's owner vouches for a bundle.

    Attributes:
      key: the key's name, derived from its public part.
      bundle: SHA-256 (hex) of the bundle.
      signed_at: seconds since 1970.
      signature: Ed25519 signature of time and digest, in URL-safe base64.
    """

    key: str
    bundle: str
    signed_at: int
    signature: str


def sign(bundle: bytes, key: Path) -> Signature:
    """Sign a bundle with an Ed25519 key in OpenSSH format, as `ssh-keygen -t ed25519` writes it.

    Raises:
      ConfigError: if the file does not hold such a key.
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
    """Read a file that `write_signature` wrote.

    Raises:
      ConfigError: if the file is not a signature.
    """
    try:
        return Signature(**json.loads(file.read_text("utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"{file}: is no signature: {error}. `fedpeft sign` writes one") from error


@contextlib.contextmanager
def app_store(bundle: bytes, signatures: Sequence[Signature], *, port: int) -> Iterator[str]:
    """Serve one app to the SuperLink on this machine, as long as the block runs.

    The SuperLink must have been started with `FLWR_SUPERGRID_API_URL=http://127.0.0.1:PORT`.

    Args:
      bundle: the app.
      signatures: signatures of the bundle; () offers it unsigned.
      port: on loopback; 0 takes a free one.

    Yields:
      The store's URL.

    Raises:
      ConfigError: if a signature is of another bundle.
      EngineError: if the port is taken.
    """
    digest = hashlib.sha256(bundle).hexdigest()
    for each in signatures:
        if each.bundle != digest:
            raise ConfigError(
                f"signature of key {each.key}: signs the bundle {each.bundle[:12]}…, this release "
                f"has {digest[:12]}…; sign it anew with the same release of fedpeft"
            )
    try:
        server = ThreadingHTTPServer(("127.0.0.1", port), _handler(bundle, signatures))
    except OSError as error:
        raise EngineError(f"port {port}: cannot be used for the app's store: {error}") from error
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _handler(bundle: bytes, signatures: Sequence[Signature]) -> type[BaseHTTPRequestHandler]:
    signed = [
        {"public_key_id": s.key, "signature": s.signature, "signed_at": s.signed_at}
        for s in signatures
    ]

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(min(65_536, int(self.headers.get("Content-Length") or 0)))
            url = f"http://127.0.0.1:{self.connection.getsockname()[1]}/bundle"
            offer = json.dumps({"fab_url": url, "verifications": signed})
            self._reply(self.path == _FETCH, offer.encode())

        def do_GET(self) -> None:
            self._reply(self.path == "/bundle", bundle)

        def log_message(self, format: str, *args: object) -> None:
            """Log nothing: the run's own log records what was submitted."""

        def _reply(self, known: bool, body: bytes) -> None:
            self.send_response(200 if known else 404)
            self.send_header("Content-Length", str(len(body) if known else 0))
            with contextlib.suppress(ConnectionError):  # the SuperLink may hang up first
                self.end_headers()
                self.wfile.write(body if known else b"")

    return Handler
