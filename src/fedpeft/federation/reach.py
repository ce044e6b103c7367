"""Whether a site reaches its server: name, port, certificate, and a SuperLink behind it.

connect ──> TLS, checked against the authority ──> POST of a fleet call ──> any answer but 404
"""

from __future__ import annotations

import http.client
import socket
import ssl
from dataclasses import dataclass

_PATH = "/v1/fleet/get-run"
_HOST_MISMATCH, _ADDRESS_MISMATCH = 62, 64  # OpenSSL's X509_V_ERR_...
_WRONG_TIME = {9: "is not valid yet", 10: "has expired"}


@dataclass(frozen=True)
class Unreached:
    """Why a server is not reached.

    Attributes:
      reason: one sentence.
      lasting: whether only another setting can change it; else the server may be back later.
    """

    reason: str
    lasting: bool


def reach(address: str, root_certificates: str | None, *, seconds: float = 5.0) -> Unreached | None:
    """Call a server as a SuperNode would, without a key; return why it is not reached.

    Args:
      address: HOST:PORT.
      root_certificates: PEM file of the authority; None for no TLS.
      seconds: longest wait for each step.
    """
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    where = f"superlink.address: {address}"
    try:
        raw = socket.create_connection((host, int(port)), timeout=seconds)
    except socket.gaierror as error:
        return Unreached(
            f"{where}: no machine of this name is known here ({error.strerror})", lasting=False
        )
    except (OSError, OverflowError) as error:
        words = (
            "no answer" if isinstance(error, TimeoutError) else getattr(error, "strerror", error)
        )
        return Unreached(
            f"{where}: cannot be reached ({words}); is the server running, and do firewalls on the "
            "way let this machine through?",
            lasting=False,
        )
    with raw:
        try:
            if root_certificates is None:
                return _call(where, raw, host)
            context = ssl.create_default_context(cafile=root_certificates)
            with context.wrap_socket(raw, server_hostname=host) as safe:
                return _call(where, safe, host)
        except ssl.SSLCertVerificationError as error:
            words = _certificate_words(where, host, root_certificates or "", error)
            return Unreached(words, lasting=True)
        except ssl.SSLError as error:
            return Unreached(
                f"{where}: does not speak TLS ({error.reason or error}); name the port of the "
                "server's gateway",
                lasting=True,
            )
        except (OSError, http.client.HTTPException) as error:
            return Unreached(
                f"{where}: breaks off ({error}); is it the port of a federation's server"
                + (
                    ", and does it want TLS (superlink.root_certificates)?"
                    if root_certificates is None
                    else "?"
                ),
                lasting=False,
            )


def _call(where: str, link: socket.socket, host: str) -> Unreached | None:
    """Send a fleet call without content; a SuperLink refuses it, which is all that is asked."""
    head = (
        f"POST {_PATH} HTTP/1.1\r\nHost: {host}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    )
    link.sendall(head.encode())
    response = http.client.HTTPResponse(link)
    try:
        response.begin()
    finally:
        response.close()
    if response.status in (502, 503, 504):
        return Unreached(
            f"{where}: its gateway answers, not the SuperLink behind it", lasting=False
        )
    if response.status == 400 and response.getheader("Server", "").startswith("nginx"):
        return Unreached(f"{where}: wants TLS; set superlink.root_certificates", lasting=True)
    if response.status == 404:
        return Unreached(
            f"{where}: is a web server, but not a federation's: found HTTP 404", lasting=True
        )
    return None


def _certificate_words(
    where: str, host: str, root: str, error: ssl.SSLCertVerificationError
) -> str:
    if error.verify_code in (_HOST_MISMATCH, _ADDRESS_MISMATCH):
        return (
            f"{where}: the server's certificate is not for {host!r} ({error.verify_message}); use "
            "the name that it was made for"
        )
    if error.verify_code in _WRONG_TIME:
        return f"{where}: the server's certificate {_WRONG_TIME[error.verify_code]}"
    return (
        f"superlink.root_certificates: {root} is the wrong authority: it did not sign the "
        f"certificate of {where.rpartition(': ')[2]} ({error.verify_message}); get ca.crt from the "
        "server's operator"
    )
