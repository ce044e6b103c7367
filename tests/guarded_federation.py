"""A real federation as the guide sets it up: `fedpeft server`, `admit`, TLS, keys, signed code."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from real_federation import Federation, environment, free_port, until

from fedpeft.experiment.read import DIGITS

SCRIPT = Path(__file__).parents[1] / "deploy" / "certificates.sh"
SITES = ("client-00", "client-01")


def no_nginx() -> str:
    """Say why there is no gateway here; "" if there is one."""
    found = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    return "" if found else "nginx is not installed: apt-get install nginx-light"


class Guarded(Federation):
    """TLS at a gateway, admitted keys, and sites that run only what the publisher has signed."""

    host = "127.0.0.1"

    @property
    def certs(self) -> Path:
        return self.folder / "certs"

    @property
    def own(self) -> Path:
        return self.folder / "server"

    @property
    def address(self) -> str:
        return f"{self.host}:{self.outside}"

    def prepare(self, *others: str) -> None:
        """Make the certificates and keys, also of sites that no experiment has."""
        shell = environment(self.folder / "home")
        command = ["bash", str(SCRIPT), str(self.certs), self.host, *SITES, *others]
        done = subprocess.run(command, env=shell, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        self.signed = self.certs / "publisher.signature.json"
        if not self.signed.exists():  # `fedpeft` is not on the PATH of this test
            self.sign("publisher", self.signed)
        self.outside, self.store = free_port(), free_port()

    def sign(self, key: str, to: Path) -> None:
        done = self.command("sign", "--key", str(self.certs / key), "--to", str(to))
        assert done.returncode == 0, done.stderr

    def start_superlink(self) -> None:
        command = [sys.executable, "-m", "fedpeft", "server", str(self.own)]
        command += ["--certificates", str(self.certs), "--listen", self.address]
        command += ["--port", str(self.port), "--store-port", str(self.store)]
        self.superlink = self._start(command, "superlink.log")
        until(self._answers, "the SuperLink answers")

    def admit(self, name: str, key: str | None = None):
        file = self.certs / f"{key or name}.pub"
        return self.command("admit", name, str(file), "--to", str(self.own))

    def split(self) -> list[str]:
        done = self.command(
            "split", str(DIGITS), *self.sets, "--to", str(self.parts), "--superlink", self.address,
            "--certificates", str(self.certs),
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        text = self.experiment.read_text().replace("127.0.0.1:8000", f"127.0.0.1:{self.port}")
        self.experiment.write_text(text)
        return list(SITES)

    def run_with(self, signatures: str, out: str, *words: str):
        command = ["run", str(self.experiment), "--json", "--out", str(self.folder / out), *words]
        return self.command(*command, *self.engine_sets(signatures))

    def engine_sets(self, signatures: str) -> list[str]:
        sets = [f"engine.signatures={signatures}", f"engine.store_port={self.store}"]
        return [word for each in sets for word in ("--set", each)]
