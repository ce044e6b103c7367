"""Who reaches a server from another machine, with nothing but `ca.crt`, controls nothing there.

The processes are real; the attacker has a network namespace of its own, joined by one cable. The
same attack on a SuperLink that is open to the network, as Flower's own guide has it, succeeds.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from guarded_federation import SITES, Guarded, no_nginx
from real_federation import BIN, environment, until

from fedpeft.federation.bundle import Signature, read_signature
from fedpeft.federation.control import Control, Link

pytestmark = [
    pytest.mark.deployment,
    pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning"),
]

ATTACKER = Path(__file__).parents[1] / "attacker.py"
HERE, THERE = "10.231.77.1", "10.231.77.2"
SPACE = f"fedpeft-{os.getpid()}"


def ip(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["ip", *words], capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def cable():
    """A machine of the attacker's own: another network, joined to this one by a cable."""
    if os.geteuid() != 0 or not shutil.which("ip"):
        pytest.skip("a network namespace needs root and iproute2")
    made = ip("netns", "add", SPACE)
    if made.returncode != 0:
        pytest.skip(f"no network namespace can be made here: {made.stderr.strip()}")
    near, far = f"fp{os.getpid() % 100000}a", f"fp{os.getpid() % 100000}b"
    try:
        steps = (
            ("link", "add", near, "type", "veth", "peer", "name", far, "netns", SPACE),
            ("addr", "add", f"{HERE}/30", "dev", near),
            ("link", "set", near, "up"),
            ("-n", SPACE, "addr", "add", f"{THERE}/30", "dev", far),
            ("-n", SPACE, "link", "set", far, "up"),
        )
        for step in steps:
            done = ip(*step)
            if done.returncode != 0:
                pytest.skip(
                    f"no cable can be made here: ip {' '.join(step)}: {done.stderr.strip()}"
                )
        yield
    finally:
        ip("netns", "del", SPACE)
        ip("link", "del", near)


class Reached(Guarded):
    """A server on the cable."""

    host = HERE

    def control(self) -> Control:
        return Control(Link(f"127.0.0.1:{self.port}", str(self.certs / "ca.crt")))

    def operators_run(self) -> int:
        """Start a run that waits for its sites."""
        settings = {"task": "handshake", "experiment": self.text, "out": str(self.folder / "op"),
                    "resume": False}  # fmt: skip
        with contextlib.closing(self.control()) as control:
            run = control.start(settings, self.signatures(), port=self.store)
            until(lambda: control.state(run).status == "running", "the operator's run")
        return run

    def signatures(self) -> list[Signature]:
        return [read_signature(self.signed)]

    @property
    def text(self) -> str:
        return self.experiment.read_text().replace("[engine]\n", "[engine]\nwait = 600.0\n", 1)

    def how(self, run: int) -> str:
        with contextlib.closing(self.control()) as control:
            state = control.state(run)
            return state.how or state.status

    def attack(self, run: int) -> dict[str, str]:
        command = ["ip", "netns", "exec", SPACE, sys.executable, str(ATTACKER), self.address]
        command += [str(self.certs / "ca.crt"), str(run), str(self.folder / "owned")]
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=120,
            env=environment(self.folder / "attacker"), cwd=self.folder,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        found: dict[str, str] = json.loads(done.stdout)
        return found


class Open(Reached):
    """A SuperLink that ends TLS itself, on the network: keys are asked of sites, not of control."""

    def start_superlink(self) -> None:
        self.outside = self.port
        command = [
            str(BIN / "flower-superlink"), "--host", HERE, "--port", str(self.port),
            "--ssl-ca-certfile", str(self.certs / "ca.crt"),
            "--ssl-certfile", str(self.certs / "server.crt"),
            "--ssl-keyfile", str(self.certs / "server.key"), "--enable-supernode-auth",
            "--database", str(self.folder / "state.db"),
            "--disable-runtime-dependency-installation",
        ]  # fmt: skip
        self.superlink = self._start(command, "superlink.log")
        until(self._answers, "the SuperLink answers")

    def signatures(self) -> list[Signature]:
        return []  # no site is to run it

    def control(self) -> Control:
        return Control(Link(self.address, str(self.certs / "ca.crt")))

    def _answers(self) -> bool:
        with socket.socket() as probe:
            probe.settimeout(1.0)
            return probe.connect_ex((HERE, self.port)) == 0


@contextlib.contextmanager
def server(kind, folder):
    made = kind(folder, "federation.clients_per_round=2", "data.budget=200")
    try:
        made.prepare()
        made.start_superlink()
        made.split()
        yield made
    finally:
        made.close()


def test_nobody_but_the_operator_controls_a_server(cable, tmp_path):
    if no_nginx():
        pytest.skip(no_nginx())
    with server(Reached, tmp_path) as here:
        for name in SITES:
            done = here.admit(name)
            assert done.returncode == 0, done.stderr
        here.start_node("client-00")  # the run waits for the other
        run = here.operators_run()
        sites = tmp_path / "op" / "sites.json"
        until(lambda: sites.exists() and '"client-00"' in sites.read_text(), "a site comes in")
        found = here.attack(run)
        assert set(found.values()) == {"refused: HTTP 404"}, found
        assert here.how(run) == "running" and not (tmp_path / "owned").exists()
        with contextlib.closing(here.control()) as control:
            assert len(control.fingerprints()) == 2, "only keys that the operator admitted"
            control.stop(run)
        for port in (here.port, here.store):
            assert closed_from_there(port)
        modes = {file.stat().st_mode & 0o777 for file in (here.own / "superlink").glob("state.db*")}
        assert modes == {0o600}
        assert not (tmp_path / "home" / "config.toml").exists()


def closed_from_there(port: int) -> bool:
    code = f"import socket; socket.create_connection(({HERE!r}, {port}), 3)"
    command = ["ip", "netns", "exec", SPACE, sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode != 0 and "ConnectionRefusedError" in done.stderr


def test_the_same_attack_on_an_open_superlink_succeeds(cable, tmp_path):
    with server(Open, tmp_path) as here:
        run = here.operators_run()
        found = here.attack(run)
        assert set(found.values()) == {"done"}, found
        assert here.how(run) == "stopped"
        until((tmp_path / "owned").exists, "the attacker's code runs on the server")
