"""`node`, `split` and `sign` from the command line, wrong input first."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time

import pki
import pytest

from fedpeft.cli import main, site_running
from fedpeft.engines.flower.requests import Request
from fedpeft.experiment.read import DIGITS
from fedpeft.federation.processes import free_port
from fedpeft.federation.resident import ask

SITE = 'name = "a"\n[data]\nsource = "digits"\n'


@pytest.fixture
def call(capsys):
    def run(*args: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as end:
            main([str(arg) for arg in args])
        out, err = capsys.readouterr()
        return int(end.value.code or 0), out, err

    return run


@contextlib.contextmanager
def tls_server(pair):
    """Greet one caller over TLS; yield the address."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*pair)

    def greet():
        with contextlib.suppress(OSError), listener.accept()[0] as raw:
            context.wrap_socket(raw, server_side=True).close()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=greet)
        thread.start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        thread.join(5)


def write(tmp_path, more: str = ""):
    file = tmp_path / "site.toml"
    file.write_text(SITE + more)
    return file


@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("node", {"--check", "--part", "--i-accept-an-unprotected-network"}),
        ("split", {"--to", "--set", "--superlink", "--certificates"}),
        ("sign", {"--key", "--to"}),
        ("server", {"--certificates", "--listen", "--port", "--store-port", "--part", "--local"}),
        ("admit", {"--to", "--replace"}),
    ],
)
def test_help_has_the_options_and_examples(call, command, options):
    code, out, _ = call(command, "--help")
    assert code == 0 and f"fedpeft {command}" in out.split("Examples:")[1]
    assert {word.rstrip(",") for word in out.split() if word.startswith("--")} >= options


def test_check_says_what_a_site_offers(call, tmp_path, monkeypatch):
    monkeypatch.setattr(site_running, "reach", lambda address, root: None)
    code, out, _ = call("node", write(tmp_path), "--check")
    assert code == 0 and "a: ready. Data: digits" in out and "leaves the site: the delta" in out


def test_check_calls_the_server(call, tmp_path):
    more = f'[superlink]\naddress = "127.0.0.1:{free_port()}"\n'
    code, out, err = call("node", write(tmp_path, more), "--check")
    assert code == 4 and "cannot be reached (Connection refused)" in err and "ready" not in out
    code, out, _ = call("node", write(tmp_path, more), "--check", "--part", "worker")
    assert code == 0 and "ready" in out, "a worker has no network"


@pytest.mark.parametrize("check", [["--check"], []])
def test_keys_and_a_wrong_authority_are_named_before_anything_starts(call, tmp_path, check):
    pki.key_pair(tmp_path / "key")
    ours = pki.Authority(tmp_path)
    more = '[superlink]\nroot_certificates = "ca.crt"\nprivate_key = "{}"\naddress = "{}"\n'
    code, _, err = call("node", write(tmp_path, more.format("ca.crt", "127.0.0.1:1")), *check)
    assert code == 2 and "ca.crt is a certificate, allowed is a private key" in err
    with tls_server(pki.Authority(tmp_path / "theirs").server()) as address:
        code, _, err = call("node", write(tmp_path, more.format("key", address)), *check)
    assert code == 2 and f"{ours.file} is the wrong authority" in err and "registered" not in err


def test_check_lists_everything_that_is_wrong(call, tmp_path):
    more = '[superlink]\naddress = "far.example:8000"\nprivate_key = "k"\n'
    code, _, err = call("node", write(tmp_path, more), "--check")
    assert code == 2 and "superlink.private_key: there is no" in err
    assert "superlink.root_certificates: not set, and far.example:8000 is not this machine" in err
    assert "superlink.trusted_keys" in err and "--i-accept-an-unprotected-network" in err


def test_a_node_does_not_start_on_an_open_network(call, tmp_path):
    more = '[superlink]\naddress = "far.example:8000"\n'
    code, _, err = call("node", write(tmp_path, more))
    assert code == 2 and "the server could run any code here" in err
    assert not (tmp_path / "state").exists()


def test_wrong_words_are_said(call, tmp_path):
    assert "allowed are all, worker, supernode" in call("node", write(tmp_path), "--part", "x")[2]
    assert "cannot be read as TOML" in call("node", tmp_path / "absent.toml")[2]
    code, _, err = call("split", DIGITS, "--to", tmp_path)
    assert code in (0, 2) and ("nothing is overwritten" in err or code == 0)


def test_a_worker_answers_and_ends_when_told(tmp_path):
    """The process itself: its socket, a handshake, SIGTERM."""
    file = write(tmp_path)
    command = [sys.executable, "-m", "fedpeft", "node", str(file), "--part", "worker"]
    worker = subprocess.Popen(command, stderr=subprocess.PIPE, env={**os.environ})
    try:
        asked = Request("handshake", "r", "a", 0, 0, 0, 0, "trust_remote_code = true\n")
        answer = ask(tmp_path / "state/door/worker", asked, timeout=30)
        assert "trust_remote_code: unknown key" in answer.refused
        worker.send_signal(signal.SIGTERM)
        began = time.monotonic()
        assert worker.wait(10) == 0 and time.monotonic() - began < 5
    finally:
        worker.kill()
        worker.communicate()
    assert not (tmp_path / "state/door/worker").exists()
