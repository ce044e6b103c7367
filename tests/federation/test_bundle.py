"""Signed bundles: what a SuperNode will verify, and the store that a SuperLink takes them from."""

from __future__ import annotations

import dataclasses
import json
import socket
import subprocess
import urllib.error
import urllib.request

import pytest

from fedpeft.core.errors import ConfigError, EngineError
from fedpeft.federation.bundle import app_store, read_signature, sign, write_signature
from fedpeft.federation.supernode import key_id

serialization = pytest.importorskip("cryptography.hazmat.primitives.serialization")
BUNDLE = b"the app"


def make_key(folder, name: str, kind: str = "ed25519"):
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519

    private = (
        ed25519.Ed25519PrivateKey.generate()
        if kind == "ed25519"
        else ec.generate_private_key(ec.SECP384R1())
    )
    file = folder / name
    file.write_bytes(
        private.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.OpenSSH,
            serialization.NoEncryption(),
        )
    )
    public = private.public_key().public_bytes(
        serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    )
    return file, public.decode()


def fetch(store: str, path: str, data: bytes | None = None) -> bytes:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(urllib.request.Request(store + path, data), timeout=5) as answer:
        return bytes(answer.read())


def test_flower_verifies_what_was_signed(tmp_path):
    """Against Flower's own check; the controls: another key, another bundle, an unsigned one."""
    node = pytest.importorskip("flwr.supernode.start_client_internal")
    fab = pytest.importorskip("flwr.supercore.fab").Fab
    (mine, public), (other, _) = make_key(tmp_path, "a"), make_key(tmp_path, "b")
    trusted = {key_id(public): public}

    def accepted(bundle: bytes, *signatures) -> bool:
        with app_store(BUNDLE, signatures, port=0) as store:
            offer = json.loads(fetch(store, "/hub/fetch-fab", b"{}"))["verifications"]
        records = {each.pop("public_key_id"): json.dumps(each) for each in offer}
        return bool(node._verify_fab(fab("", bundle, records), trusted))

    assert accepted(BUNDLE, sign(BUNDLE, mine))
    assert accepted(BUNDLE, sign(BUNDLE, other), sign(BUNDLE, mine))
    assert not accepted(BUNDLE, sign(BUNDLE, other))
    assert not accepted(b"evil", sign(BUNDLE, mine))
    assert not accepted(BUNDLE)
    forged = dataclasses.replace(sign(BUNDLE, other), key=key_id(public))
    assert not accepted(BUNDLE, forged)
    assert not accepted(BUNDLE, dataclasses.replace(sign(BUNDLE, mine), signed_at=1))


def test_a_signature_is_kept_in_a_file(tmp_path):
    key, public = make_key(tmp_path, "a")
    signature = sign(BUNDLE, key)
    write_signature(tmp_path / "s.json", signature)
    assert read_signature(tmp_path / "s.json") == signature and signature.key == key_id(public)


def test_what_is_no_key_or_signature_is_refused(tmp_path):
    wrong, _ = make_key(tmp_path, "ec", "ec")
    with pytest.raises(ConfigError, match="is no Ed25519 key"):
        sign(BUNDLE, wrong)
    with pytest.raises(ConfigError, match="cannot be read as a private key"):
        sign(BUNDLE, tmp_path / "absent")
    (tmp_path / "s.json").write_text('{"key": "x"}')
    with pytest.raises(ConfigError, match="is no signature"):
        read_signature(tmp_path / "s.json")


def test_a_signature_of_another_release_is_refused(tmp_path):
    key, _ = make_key(tmp_path, "a")
    store = app_store(b"newer", [sign(BUNDLE, key)], port=0)
    with pytest.raises(ConfigError, match="sign it anew with the same release"), store:
        pass


def test_the_store_has_one_app_and_nothing_else(tmp_path):
    with app_store(BUNDLE, (), port=0) as store:
        offer = json.loads(fetch(store, "/hub/fetch-fab", b'{"app_id": "@x/y"}'))
        assert fetch(store, "/bundle") == BUNDLE
        assert offer == {"fab_url": f"{store}/bundle", "verifications": []}
        for path, data in (("/etc/passwd", None), ("/other", b"{}")):
            with pytest.raises(urllib.error.HTTPError, match="404") as found:
                fetch(store, path, data)
            found.value.close()


def test_a_port_that_is_taken_is_said():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        store = app_store(BUNDLE, (), port=taken.getsockname()[1])
        with pytest.raises(EngineError, match="cannot be used for the app's store"), store:
            pass


def test_keys_of_ssh_keygen_work(tmp_path):
    try:
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / "k")], check=True
        )
    except FileNotFoundError:
        pytest.skip("ssh-keygen is not installed")
    public = (tmp_path / "k.pub").read_text()
    assert sign(BUNDLE, tmp_path / "k").key == key_id(public)
