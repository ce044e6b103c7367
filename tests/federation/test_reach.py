"""A server that is not reached is explained by what is wrong: name, port, authority, gateway."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading

import pki
import pytest

from fedpeft.federation.processes import free_port
from fedpeft.federation.reach import reach


@contextlib.contextmanager
def server(answer: bytes, pair=None):
    """Answer every connection with some bytes, over TLS where a certificate is given."""
    listener = socket.create_server(("127.0.0.1", 0))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    if pair:
        context.load_cert_chain(*pair)

    def serve():
        while True:
            try:
                raw, _ = listener.accept()
            except OSError:
                return
            with contextlib.suppress(OSError), raw:
                raw.settimeout(5)
                link = context.wrap_socket(raw, server_side=True) if pair else raw
                with link:
                    link.recv(4096)
                    link.sendall(answer)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield f"127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


def http(code: int, name: str = "uvicorn") -> bytes:
    return f"HTTP/1.1 {code} Word\r\nServer: {name}\r\nContent-Length: 0\r\n\r\n".encode()


def test_a_server_that_answers_is_reached(tmp_path):
    authority = pki.Authority(tmp_path)
    with server(http(401), authority.server()) as address:
        assert reach(address, str(authority.file)) is None
    with server(http(422)) as address:
        assert reach(address, None) is None


def test_a_wrong_authority_is_called_that(tmp_path):
    ours, theirs = pki.Authority(tmp_path / "ours"), pki.Authority(tmp_path / "theirs")
    with server(http(401), theirs.server()) as address:
        found = reach(address, str(ours.file))
    assert found.lasting and f"{ours.file} is the wrong authority" in found.reason
    assert f"did not sign the certificate of {address}" in found.reason


@pytest.mark.parametrize(
    ("made", "words"),
    [({"host": "other.example"}, "is not for '127.0.0.1'"), ({"days": -1}, "has expired")],
)
def test_a_certificate_of_another_host_or_time_is_called_that(tmp_path, made, words):
    authority = pki.Authority(tmp_path)
    with server(http(401), authority.server(**made)) as address:
        found = reach(address, str(authority.file))
    assert found.lasting and words in found.reason and "authority" not in found.reason


@pytest.mark.parametrize(
    ("answer", "words", "lasting"),
    [
        (http(502, "nginx"), "its gateway answers, not the SuperLink behind it", False),
        (http(400, "nginx"), "wants TLS; set superlink.root_certificates", True),
        (http(404), "is a web server, but not a federation's", True),
        (b"SSH-2.0-OpenSSH_9\r\n", "is it the port of a federation's server", False),
        (b"", "is it the port of a federation's server", False),
    ],
)
def test_something_else_behind_the_port_is_said(answer, words, lasting):
    with server(answer) as address:
        found = reach(address, None)
    assert words in found.reason and found.lasting == lasting


def test_no_machine_no_port_and_no_tls_are_said(tmp_path):
    authority = pki.Authority(tmp_path)
    found = reach(f"127.0.0.1:{free_port()}", None)
    assert "cannot be reached (Connection refused)" in found.reason and not found.lasting
    found = reach("no-such-machine.invalid:1", None)
    assert "no machine of this name is known here" in found.reason and not found.lasting
    with server(http(401)) as address:
        found = reach(address, str(authority.file))
    assert "does not speak TLS" in found.reason
