"""The container files keep the rules that the page about trust promises."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from fedpeft.federation.gateway import Gateway, configuration

DEPLOY = Path(__file__).parents[1] / "deploy"
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text("utf-8"))
SERVICES = COMPOSE["services"]
DOCKERFILE = (DEPLOY / "Dockerfile").read_text("utf-8")


def mounts(service: str) -> dict[str, str]:
    return {part.split(":")[1]: part.split(":")[0] for part in SERVICES[service]["volumes"]}


@pytest.mark.parametrize("name", SERVICES)
def test_no_service_has_more_rights_than_it_needs(name):
    service = SERVICES[name]
    assert service["user"] == "10001:10001" and service["read_only"] is True
    assert service["cap_drop"] == ["ALL"] and not service.get("privileged")
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert "/var/run/docker.sock" not in str(service)


def test_what_has_data_has_no_network_and_what_has_a_network_has_no_data():
    assert SERVICES["worker"]["network_mode"] == "none" and "ports" not in SERVICES["worker"]
    assert "/data" in mounts("worker") and "/data" not in mounts("supernode")
    shared = {source for source in mounts("worker").values()} & set(mounts("supernode").values())
    assert shared == {"door"}


def test_only_the_gateway_listens_and_keys_stay_where_they_belong():
    assert SERVICES["superlink"]["ports"] == ["8443:8443"], "its network is the gateway's too"
    assert [name for name, service in SERVICES.items() if "ports" in service] == ["superlink"]
    assert SERVICES["gateway"]["network_mode"] == "service:superlink"
    assert SERVICES["superlink"]["command"][-2:] == ["--part", "superlink"]
    assert "/certs/server.key" in mounts("gateway") and "/certs/loopback.key" in mounts("superlink")
    assert not {"/certs", "/certs/server.key"} & set(mounts("superlink"))
    assert not {"/certs", "/certs/loopback.key", "/superlink"} & set(mounts("gateway"))
    assert "/site" not in mounts("worker")  # the site's key is the SuperNode's
    assert all(v.endswith(":ro") for v in SERVICES["worker"]["volumes"] if v.startswith("./"))


def test_every_named_volume_and_folder_is_there():
    named = {
        source
        for name in SERVICES
        for source in mounts(name).values()
        if not source.startswith(".")
    }
    assert named == set(COMPOSE["volumes"])
    made = re.search(r"install -d .* (/state .*)", DOCKERFILE).group(1).split()
    assert {"/state", "/state/door", "/runs", "/superlink"} == set(made)


def test_the_gateways_configuration_is_the_one_that_the_command_writes():
    written = configuration(Gateway("0.0.0.0:8443", 8000, Path("/certs"), Path("/tmp")))
    assert (DEPLOY / "nginx.conf").read_text("utf-8") == written


def test_the_image_does_not_run_as_root_and_holds_no_secret():
    users = re.findall(r"^USER (.*)", DOCKERFILE, re.M)
    assert users == ["10001:10001"] and DOCKERFILE.count("FROM ") == 2
    copied = re.findall(r"^COPY (?!--from)(.*) \S+$", DOCKERFILE, re.M)
    assert " ".join(copied).split() == [
        "constraints.txt", "pyproject.toml", "README.md", "LICENSE", "src",
    ]  # fmt: skip


def test_the_script_writes_keys_that_are_their_owners_only(tmp_path):
    if not shutil.which("openssl") or not shutil.which("ssh-keygen"):
        pytest.skip("openssl and ssh-keygen are not installed")
    script, out = DEPLOY / "certificates.sh", tmp_path / "certs"
    environment = {"PATH": "/usr/bin:/bin"}  # no fedpeft there: it says how to sign
    command = ["bash", str(script), str(out), "box.example", "a", "b"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0 and "sign where it is" in done.stdout, done.stderr
    secret = {file.name for file in out.iterdir() if file.stat().st_mode & 0o077 == 0}
    assert secret == {"ca.key", "server.key", "loopback.key", "a", "b", "publisher"}
    shown = subprocess.run(
        ["openssl", "x509", "-in", str(out / "server.crt"), "-noout", "-ext", "subjectAltName"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert "DNS:box.example" in shown and "127.0.0.1" not in shown
    again = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert again.returncode == 2 and "nothing is overwritten" in again.stderr
