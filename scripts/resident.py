"""Measure what a site's resident worker saves: seconds of a round with it and without it.

    python scripts/resident.py [--rounds 4] [--repeats 2]

A federation on this machine: MiniLM and LoRA, two sites, TLS, registered keys and signed code.
With and without take turns, each a run of its own on the same SuperLink; the first round of a run,
in which models are loaded, is left out. Needs the extras `text` and `flower`, ssh-keygen, openssl.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
SITES = ("client-00", "client-01")


def main() -> None:
    """Measure, and print a line a run and the ratio."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--rounds", type=int, default=4, help="of each run, at least 2")
    parser.add_argument("--repeats", type=int, default=2, help="runs of each kind")
    asked = parser.parse_args()
    seconds: dict[bool, list[float]] = {True: [], False: []}
    with tempfile.TemporaryDirectory(prefix="fp") as folder:
        federation = Federation(Path(folder))
        try:
            federation.open()
            for number in range(2 * asked.repeats):
                resident = number % 2 == 0
                found = federation.run(number, asked.rounds, resident=resident)
                seconds[resident] += found[1:]
                kind = "with" if resident else "without"
                print(f"{kind} a resident worker: {_words(found)} s a round", flush=True)
        finally:
            federation.close()
    middle = {resident: statistics.median(found) for resident, found in seconds.items()}
    print(
        f"median of a round after the first: {middle[True]:.1f} s with, "
        f"{middle[False]:.1f} s without: "
        f"{middle[False] / middle[True]:.2f} times as fast with a resident worker"
    )


def _words(seconds: Sequence[float]) -> str:
    return ", ".join(f"{each:.1f}" for each in seconds)


class Federation:
    """SuperLink and sites on this machine, in a folder; all are ended by `close`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._port, self._store, self._outside = _free_port(), _free_port(), _free_port()
        self._link: subprocess.Popen[bytes] | None = None
        self._sites: list[subprocess.Popen[bytes]] = []
        self._environment = _environment(folder)

    def open(self) -> None:
        """Make keys and parts, start the SuperLink, register the sites."""
        certs, parts = self._folder / "certs", self._folder / "parts"
        self._call(str(ROOT / "deploy" / "certificates.sh"), str(certs), "127.0.0.1", *SITES)
        example = str(ROOT / "examples" / "federation-minilm.toml")
        gateway = ("--superlink", f"127.0.0.1:{self._outside}", "--certificates", str(certs))
        self._call("fedpeft", "split", example, "--to", str(parts), *gateway)
        own = str(self._folder / "server")
        self._link = self._start(
            "link", "fedpeft", "server", own, "--certificates", str(certs),
            "--listen", f"127.0.0.1:{self._outside}", "--port", str(self._port),
            "--store-port", str(self._store),
        )  # fmt: skip
        _wait_for(self._port)
        for site in SITES:
            self._call("fedpeft", "admit", site, f"{certs}/{site}.pub", "--to", own)

    def run(self, number: int, rounds: int, *, resident: bool) -> list[float]:
        """Start both sites, run, end the sites; return the seconds of each round."""
        for site in SITES:
            file = self._folder / "parts" / site / "site.toml"
            text = re.sub(r"\n\[worker\]\nresident = .*\n", "\n", file.read_text("utf-8"))
            told = f"\n[worker]\nresident = {str(resident).lower()}\n"
            file.write_text(text.rstrip("\n") + "\n" + told, "utf-8")
            self._sites.append(self._start(f"{site}-{number}", "fedpeft", "node", str(file)))
        out = self._folder / f"out-{number}"
        try:
            self._call(
                "fedpeft", "run", str(self._folder / "parts" / "server" / "experiment.toml"),
                "--out", str(out), "--set", f"federation.rounds={rounds}",
                "--set", f"engine.superlink=127.0.0.1:{self._port}",
                "--set", f"engine.store_port={self._store}",
                "--set", f"federation.eval_every={rounds}",
            )  # fmt: skip
        finally:
            self._end_sites()
        lines = [json.loads(line) for line in (out / "rounds.jsonl").read_text().splitlines()]
        if any(line["failures"] for line in lines):
            raise SystemExit(f"a site failed: {[line['failures'] for line in lines]}")
        return [float(line["seconds"]) for line in lines[:-1]]

    def close(self) -> None:
        """End everything that was started."""
        self._end_sites()
        if self._link is not None:
            _end(self._link)

    def _end_sites(self) -> None:
        for site in self._sites:
            _end(site)
        self._sites = []

    def _start(self, name: str, program: str, *words: str) -> subprocess.Popen[bytes]:
        with (self._folder / f"{name}.log").open("wb") as log:
            return subprocess.Popen(
                [BIN / program, *words],
                env=self._environment,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )

    def _call(self, *command: str) -> None:
        program = command[0] if "/" in command[0] else str(BIN / command[0])
        done = subprocess.run(
            [program, *command[1:]],
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            timeout=900,
            text=True,
        )
        if done.returncode:
            logs = "\n".join(
                f"--- {file.name}\n{file.read_text('utf-8', errors='replace')[-2000:]}"
                for file in self._folder.glob("*.log")
            )
            raise SystemExit(
                f"{' '.join(command)}: exit code {done.returncode}\n{done.stdout}\n{logs}"
            )


def _environment(folder: Path) -> Mapping[str, str]:
    return {
        **os.environ,
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "PASSIVE",
        "HF_HUB_OFFLINE": "1",
        "FLWR_HOME": str(folder / "home"),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
    }


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_for(port: int, seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.5)
        else:
            time.sleep(2)
            return
    raise SystemExit(f"the SuperLink did not open port {port} within {seconds:.0f} s")


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process and its children, which share its group."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


if __name__ == "__main__":
    main()
