"""The gateway passes on the calls of SuperNodes and nothing else, whatever is requested."""

from __future__ import annotations

import contextlib
import functools
import http.client
import resource
import shutil
import socket
import ssl
import subprocess
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pki
import pytest

from fedpeft.core.errors import ConfigError
from fedpeft.federation.gateway import CALLS, Gateway, configuration
from fedpeft.federation.processes import free_port


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    nginx = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if nginx is None:
        pytest.skip("nginx is not installed: apt-get install nginx-light")
    return nginx, pki.Authority(tmp_path_factory.mktemp("pki"))


class SuperLink:
    """A stand-in that answers everything, and keeps what reached it."""

    def __init__(self):
        seen = self.seen = []

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self):
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                seen.append((self.command, self.path, len(body), self.headers))
                self.send_response(200)
                self.send_header("Content-Length", "2")
                self.end_headers()
                self.wfile.write(b"ok")

            do_GET = do_POST = do_PUT = do_DELETE = do_HEAD = do_OPTIONS = answer

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.port = self.server.server_port

    def close(self):
        self.server.shutdown()
        self.server.server_close()


@contextlib.contextmanager
def running(place, folder, change=lambda text: text):
    """Run nginx with our configuration, or one that a test changed; yield a caller and the log."""
    nginx, authority = place
    behind, port = SuperLink(), free_port()
    authority.server()
    (folder / "own").mkdir()
    settings = Gateway(f"127.0.0.1:{port}", behind.port, authority.folder, folder / "own")
    text = configuration(settings).replace("https://127", "http://127")  # the stand-in has no TLS
    (folder / "nginx.conf").write_text(change(text))
    command = [nginx, "-e", "stderr", "-p", str(folder), "-c", str(folder / "nginx.conf")]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stderr=log)
        try:
            end = time.monotonic() + 60
            while not reachable(port):
                assert time.monotonic() < end and process.poll() is None, (
                    folder / "log"
                ).read_text()
                time.sleep(0.02)
            send = functools.partial(call, authority, port)
            send.port = port
            yield send, behind
        finally:
            process.terminate()
            process.wait(10)
            behind.close()


def reachable(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def call(authority, port, method, target, body=b"", headers=()):
    context = ssl.create_default_context(cafile=str(authority.file))
    with socket.create_connection(("127.0.0.1", port), timeout=10) as raw:
        with context.wrap_socket(raw, server_hostname="127.0.0.1") as link:
            lines = [f"{method} {target} HTTP/1.1", "Host: box", f"Content-Length: {len(body)}"]
            lines += [*headers, "Connection: close", "", ""]
            link.sendall("\r\n".join(lines).encode() + body)
            response = http.client.HTTPResponse(link)
            response.begin()
            with contextlib.closing(response):
                return response.status


HOSTILE = [
    "/v1/control/start-run", "/v1/control/list-runs", "/v1/control/stop-run",
    "/v1/control/register-node", "/v1/runtime/acquire-task", "/v1/fleet/register-node",
    "/v1/fleet/unregister-node", "/", "/docs", "/openapi.json", "/v1/fleet/", "/v1/fleet",
    "/v1/fleet/get-run/", "/v1/fleet/get-run/x", "/v1/fleet/get-runs", "/V1/fleet/get-run",
    "/v1/fleet/../control/start-run", "/v1/fleet/get-run/../../control/start-run",
    "/v1/fleet/%2e%2e/control/start-run", "/v1/fleet/get-run%00", "/v1/fleet/get-run%0a",
    "/v1/fleet/get-run;x", "/v1/fleet/get-run%2f..%2f..%2fcontrol%2fstart-run",
    "http://127.0.0.1:8000/v1/control/start-run", "//v1/control/start-run",
]  # fmt: skip
DISGUISED = [
    "/v1/control/../fleet/get-run", "/v1/control/start-run/../../fleet/get-run",
    "/v1/control/start-run%3f/../../fleet/get-run", "/v1/fleet/get-run?/v1/control/start-run",
    "/v1/control/start-run#/../../fleet/get-run", "/v1//fleet/get-run", "/v1/fleet/get%2drun",
]  # fmt: skip


def test_every_call_of_a_supernode_arrives(place, tmp_path):
    with running(place, tmp_path) as (send, behind):
        assert {send("POST", f"/v1/fleet/{name}", b"x" * 100) for name in CALLS} == {200}
        big = send("POST", "/v1/fleet/push-object", b"x" * (5 * 2**20 + 1000))
    assert [(way, path) for way, path, *_ in behind.seen] == [
        *(("POST", f"/v1/fleet/{name}") for name in CALLS), ("POST", "/v1/fleet/push-object"),
    ]  # fmt: skip
    assert big == 200 and behind.seen[-1][2] == 5 * 2**20 + 1000
    assert not list((tmp_path / "own").rglob("*/*")), "parts of a message are on the disk"


def test_nothing_else_arrives_whatever_is_requested(place, tmp_path):
    allowed = {("POST", f"/v1/fleet/{name}") for name in CALLS}
    with running(place, tmp_path) as (send, behind):
        codes = {target: send("POST", target) for target in HOSTILE}
        assert all(400 <= code < 500 for code in codes.values()), codes
        for method in ("GET", "PUT", "DELETE", "OPTIONS", "HEAD", "CONNECT", "TRACE"):
            assert 400 <= send(method, "/v1/fleet/get-run") < 500
        assert not behind.seen
        log = (tmp_path / "own" / "access.log").read_text()
        assert '"POST /v1/control/start-run HTTP/1.1" 404' in log, "who was refused is kept"
        for target in DISGUISED:
            send("POST", target)
    assert {(way, path) for way, path, *_ in behind.seen} <= allowed


def test_what_is_too_long_is_refused_and_who_calls_is_not_taken_from_the_caller(place, tmp_path):
    with running(place, tmp_path) as (send, behind):
        assert send("POST", "/v1/fleet/push-object", b"", ["X-Padding: " + "x" * 9000]) == 400
        with contextlib.suppress(OSError):
            assert send("POST", "/v1/fleet/push-object", b"x" * (17 * 2**20)) == 413
        forged = ["X-Forwarded-For: 10.9.9.9", "X-Forwarded-Proto: http"]
        assert send("POST", "/v1/fleet/get-run", b"", forged) == 200
    (seen,) = behind.seen
    assert seen[3].get_all("X-Forwarded-For") == ["127.0.0.1"]
    assert seen[3].get_all("X-Forwarded-Proto") == ["https"]


def test_a_call_is_no_longer_than_it_can_be(place, tmp_path):
    """The SuperLink holds a request whole before it knows whose it is; only objects are long."""
    with running(place, tmp_path) as (send, behind):
        with contextlib.suppress(OSError):
            assert send("POST", "/v1/fleet/push-messages", b"x" * (2**16 + 1)) == 413
        with contextlib.suppress(OSError):
            assert send("POST", "/v1/fleet/push-object", b"x" * (6 * 2**20 + 1)) == 413
        assert not behind.seen
        assert send("POST", "/v1/fleet/push-messages", b"x" * 2**16) == 200


def test_who_is_refused_again_and_again_does_not_fill_the_disk(place, tmp_path):
    with running(place, tmp_path) as (send, behind):
        for number in range(80):
            send("POST", f"/v1/control/start-run?{number}{'x' * 5000}")
            send("POST", "/v1/fleet/get run")
        lines = (tmp_path / "own" / "access.log").read_text().splitlines()
    assert '"POST /v1/control/start-run?0xxx' in lines[0] and '" 404 ' in lines[0]
    assert 20 <= len(lines) <= 60 and max(map(len, lines)) < 300
    assert (tmp_path / "log").stat().st_size < 5000
    assert not behind.seen


def test_the_share_of_one_address_leaves_room_for_uploads(place, tmp_path):
    """More uploads at once than an honest site has wait for their turn, other calls go on."""
    with running(place, tmp_path) as (send, _):
        head = b"POST /v1/fleet/push-object HTTP/1.1\r\nHost: b\r\nContent-Length: 99\r\n\r\nx"
        with contextlib.ExitStack() as stack:
            for _ in range(33):
                stack.enter_context(held(place, send.port, head))
            until(lambda: send("POST", "/v1/fleet/push-object") == 503)
            assert send("POST", "/v1/fleet/get-run") == 200
        until(lambda: send("POST", "/v1/fleet/push-object") == 200)


@pytest.mark.slow
def test_requests_that_are_left_half_sent_keep_nobody_out(place, tmp_path):
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 20_000), hard))
    half = b"POST /v1/fleet/get-run HTTP/1.1\r\nHost: b\r\nX-A: "
    for change, answers in ((lambda text: text, 1200), (few_connections, 0)):
        (tmp_path / str(answers)).mkdir()
        here = running(place, tmp_path / str(answers), change)
        with here as (send, _), contextlib.ExitStack() as stack:
            with contextlib.suppress(OSError):
                for _ in range(1200):
                    stack.enter_context(held(place, send.port, half))
            if answers:
                assert send("POST", "/v1/fleet/get-run") == 200
            else:
                with pytest.raises(OSError, match=r"reset|EOF|peer"):
                    send("POST", "/v1/fleet/get-run")


def few_connections(text):
    """The negative control: what a proxy has where nobody says anything."""
    assert "worker_connections 8192" in text
    return text.replace("worker_connections 8192", "worker_connections 1024")


@contextlib.contextmanager
def held(place, port, start):
    """A connection over which the start of a request was sent, and nothing more."""
    context = ssl.create_default_context(cafile=str(place[1].file))
    with socket.create_connection(("127.0.0.1", port), timeout=10) as raw:
        with context.wrap_socket(raw, server_hostname="127.0.0.1") as link:
            link.sendall(start)
            yield


def until(true):
    end = time.monotonic() + 60
    while not true():
        assert time.monotonic() < end
        time.sleep(0.1)


def test_a_gateway_that_passes_everything_on_would_be_seen(place, tmp_path):
    """The negative control of the two laws above."""

    def leak(text):
        assert "      return 404;" in text
        upstream = text.split("proxy_pass ")[1].split("/v1/")[0]
        return text.replace("      return 404;", f"      proxy_pass {upstream};")

    with running(place, tmp_path, leak) as (send, behind):
        assert send("POST", "/v1/control/start-run") == 200
    assert behind.seen[0][1] == "/v1/control/start-run"


def test_a_path_that_would_end_its_line_is_refused(tmp_path):
    odd = Gateway("0.0.0.0:1", 2, tmp_path / 'a";x', tmp_path)
    with pytest.raises(ConfigError, match="cannot stand in a path of a server"):
        configuration(odd)


def test_supernodes_of_this_flower_make_no_call_that_is_not_in_the_list():
    """A newer Flower with another call is seen here, not in a federation."""
    from flwr.supernode import fleet_http_client

    text = Path(fleet_http_client.__file__).read_text("utf-8")
    found = {part.split('"')[0] for part in text.split('path="/v1/fleet/')[1:]}
    assert found == {*CALLS, "register-node", "unregister-node"}
