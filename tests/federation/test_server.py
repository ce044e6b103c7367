"""A server's processes: control on loopback, files for their owner, keys outside."""

from __future__ import annotations

import pki
import pytest

from fedpeft.core.errors import ConfigError
from fedpeft.federation import gateway as gateways
from fedpeft.federation import server as servers
from fedpeft.federation.server import ServerSettings, children


@pytest.fixture(autouse=True)
def _programs(monkeypatch):
    for module in (gateways, servers):
        monkeypatch.setattr(module, "program", lambda name, advice="": f"/bin/{name}")


def settings(tmp_path, **more):
    authority = pki.Authority(tmp_path / "certs")
    authority.server()
    authority.server(name="loopback")
    given = {"certificates": authority.folder, "listen": "0.0.0.0:8443", **more}
    return ServerSettings(tmp_path / "server", **given)


def test_the_superlink_listens_on_loopback_and_the_gateway_on_the_network(tmp_path):
    superlink, gateway = children(settings(tmp_path), "all")
    words = " ".join(superlink.command)
    assert "--host 127.0.0.1 --port 8000" in words and "--enable-supernode-auth" in words
    assert "0.0.0.0" not in words
    own = tmp_path / "server"
    text = (own / "gateway" / "nginx.conf").read_text()
    assert "listen 0.0.0.0:8443 ssl;" in text and "https://127.0.0.1:8000/v1/fleet/$call" in text
    assert [each.name for each in children(settings(tmp_path), "superlink")] == ["superlink"]
    assert [each.name for each in children(settings(tmp_path), "gateway")] == ["gateway"]
    assert gateway.name == "gateway"


def test_files_are_their_owners_and_no_key_lies_where_runs_work(tmp_path):
    superlink, gateway = children(settings(tmp_path), "all")
    assert superlink.mask == gateway.mask == 0o077
    assert superlink.folder == tmp_path / "server" / "superlink"
    assert {
        path.stat().st_mode & 0o777 for path in (superlink.folder, superlink.folder.parent)
    } == {0o700}
    assert superlink.environment["FLWR_HOME"].startswith(str(tmp_path))
    assert not [word for word in superlink.command if word.endswith("server.key")]
    inside = tmp_path / "server" / "keys"
    with pytest.raises(ConfigError, match="lies in the server's folder"):
        children(settings(tmp_path, certificates=inside), "all")


def test_a_server_without_a_key_is_for_this_machine_alone(tmp_path):
    with pytest.raises(ConfigError, match=r"--certificates: not set.*say --local"):
        children(settings(tmp_path, certificates=None), "all")
    (only,) = children(ServerSettings(tmp_path / "server", local=True), "all")
    assert "127.0.0.1" in only.command and "--enable-supernode-auth" not in only.command
    with pytest.raises(ConfigError, match="--local: found with --certificates"):
        children(settings(tmp_path, local=True), "all")
    with pytest.raises(ConfigError, match="--listen: found 'box'"):
        children(settings(tmp_path, listen="box"), "all")
