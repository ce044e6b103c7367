"""A federation over TLS with keys and signed bundles, with real Flower processes."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from real_federation import BIN, Federation, environment, until

pytestmark = pytest.mark.deployment

SCRIPT = Path(__file__).parents[2] / "deploy" / "certificates.sh"
SITES = ("client-00", "client-01")


class Guarded(Federation):
    """TLS, registered keys, and sites that run only what the publisher has signed."""

    @property
    def certs(self) -> Path:
        return self.folder / "certs"

    def prepare(self) -> None:
        shell = environment(self.folder / "home")
        command = ["bash", str(SCRIPT), str(self.certs), "127.0.0.1", *SITES]
        done = subprocess.run(command, env=shell, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        self.signed = self.certs / "publisher.signature.json"
        if not self.signed.exists():  # `fedpeft` is not on the PATH of this test
            self.sign("publisher", self.signed)
        connection = (
            f'[superlink]\ndefault = "lab"\n[superlink.lab]\naddress = "127.0.0.1:{self.port}"\n'
        )
        connection += f'root-certificates = "{self.certs}/ca.crt"\n'
        (self.folder / "home").mkdir(exist_ok=True)
        (self.folder / "home" / "config.toml").write_text(connection)

    def sign(self, key: str, to: Path) -> None:
        done = self.command("sign", "--key", str(self.certs / key), "--to", str(to))
        assert done.returncode == 0, done.stderr

    def start_superlink(self) -> None:
        self.store = self.port + 1 if self.port < 65535 else self.port - 1
        command = [
            "env", f"FLWR_SUPERGRID_API_URL=http://127.0.0.1:{self.store}", "NO_PROXY=127.0.0.1",
            str(BIN / "flower-superlink"), "--host", "127.0.0.1", "--port", str(self.port),
            "--ssl-ca-certfile", str(self.certs / "ca.crt"),
            "--ssl-certfile", str(self.certs / "server.crt"),
            "--ssl-keyfile", str(self.certs / "server.key"), "--enable-supernode-auth",
            "--database", str(self.folder / "state.db"),
            "--disable-runtime-dependency-installation",
        ]  # fmt: skip
        self.superlink = self._start(command, "superlink.log")
        until(self._answers, "the SuperLink answers")

    def register(self, name: str) -> None:
        command = [
            str(BIN / "flwr"),
            "supernode",
            "register",
            str(self.certs / f"{name}.pub"),
            "lab",
        ]
        done = subprocess.run(
            command,
            env=environment(self.folder / "home"),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def split(self) -> list[str]:
        done = self.command(
            "split", *self.sets, "--to", str(self.parts), "--superlink", f"127.0.0.1:{self.port}",
            "--certificates", str(self.certs),
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return list(SITES)

    def run_with(self, signatures: str, out: str, *words: str):
        command = ["run", str(self.experiment), "--json", "--out", str(self.folder / out), *words]
        command += ["--set", f"engine.signatures={signatures}"]
        command += ["--set", f"engine.store_port={self.store}"]
        return self.command(*command)


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    sets = ("federation.rounds=2", "federation.clients_per_round=2", "data.budget=200")
    made = Guarded(tmp_path_factory.mktemp("guarded"), *sets)
    try:
        made.prepare()
        made.start_superlink()
        for name in made.split():
            made.register(name)
            made.start_node(name)
        yield made
    finally:
        made.close()


def test_a_signed_bundle_gives_the_delta_of_one_machine(here):
    expected = here.local()
    done = here.run_with(f'["{here.signed}"]', "signed")
    assert done.returncode == 0, done.stderr
    assert expected["delta_digest"] in done.stdout


@pytest.mark.parametrize("whose", ["nobody", "a foreign key"])
def test_a_foreign_bundle_is_refused(here, whose):
    signatures = "[]"
    if whose != "nobody":
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(here.certs / "foreign")],
            check=True,
        )
        here.sign("foreign", here.certs / "foreign.json")
        signatures = f'["{here.certs / "foreign.json"}"]'
    done = here.run_with(signatures, whose, "--set", "engine.wait=30")
    assert done.returncode == 3, done.stderr
    assert "the site refused the app bundle: The FAB could not be verified" in done.stderr
    runs = [list((here.parts / site / "state" / "turns").glob("[!.]*")) for site in SITES]
    assert all(len(found) <= 1 for found in runs)  # that of the signed run
