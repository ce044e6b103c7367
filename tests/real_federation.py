"""A federation on this machine: real SuperLink, sites and `fedpeft run`, each killed with care.

Only processes that were started here are ended, by their groups; every wait has a bound.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import psutil

import fedpeft
from fedpeft.experiment.read import DIGITS

BIN = Path(sys.executable).parent
START = 120.0
SETS = (
    "model.name=preset:tiny-vit", "client.lr=0.05", "client.epochs=1", "engine.workers=1",
)  # fmt: skip


def sets_of(*sets: str) -> list[str]:
    return [part for each in (*SETS, *sets) for part in ("--set", each)]


def environment(home: Path) -> dict[str, str]:
    source = str(Path(fedpeft.__file__).parents[1])
    return {
        **os.environ,
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": source,
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
    }


def until(true: Callable[[], object], what: str, seconds: float = START) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"{what}: not within {seconds:g} s"
        time.sleep(0.2)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Process:
    """A process in a group of its own, its output in a file."""

    def __init__(self, command: Sequence[str], log: Path, home: Path) -> None:
        self.log = log
        self._file = log.open("ab")
        self.popen = subprocess.Popen(
            command, stdout=subprocess.PIPE if log.suffix == ".err" else self._file,
            stderr=self._file, stdin=subprocess.DEVNULL, env=environment(home),
            start_new_session=True,
        )  # fmt: skip

    def kill(self, number: int = signal.SIGKILL) -> None:
        """End the whole group, as a power cut would."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.popen.pid, number)

    def end(self) -> None:
        self.kill(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.popen.wait(15)
        self.kill()
        self.popen.wait(15)
        if self.popen.stdout is not None:
            self.popen.stdout.close()
        self._file.close()

    def text(self) -> str:
        return self.log.read_text("utf-8", errors="replace")


class Federation:
    """A SuperLink and sites, from the parts of an experiment."""

    def __init__(self, folder: Path, *sets: str, clients: int = 2) -> None:
        self.folder = folder
        self.port = free_port()
        self.parts = folder / "parts"
        self.out = folder / "out"
        self.experiment = self.parts / "server" / "experiment.toml"
        self.sets = sets_of(f"data.partition.clients={clients}", *sets)
        self._running: list[Process] = []
        self.nodes: dict[str, Process] = {}
        self.superlink: Process | None = None

    def command(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "fedpeft", *words], capture_output=True, text=True,
            env=environment(self.folder / "home"), timeout=START, check=False,
        )  # fmt: skip

    def split(self) -> list[str]:
        done = self.command(
            "split", str(DIGITS), *self.sets, "--to", str(self.parts),
            "--superlink", f"127.0.0.1:{self.port}",
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return sorted(path.name for path in self.parts.iterdir() if path.name != "server")

    def start_superlink(self) -> None:
        command = [
            str(BIN / "flower-superlink"), "--insecure", "--host", "127.0.0.1",
            "--port", str(self.port), "--database", str(self.folder / "state.db"),
            "--disable-runtime-dependency-installation",
        ]  # fmt: skip
        self.superlink = self._start(command, "superlink.log")
        until(self._answers, "the SuperLink answers")

    def start_node(self, name: str, *words: str) -> Process:
        file = self.parts / name / "site.toml"
        command = [sys.executable, "-m", "fedpeft", "node", str(file), *words]
        self.nodes[name] = self._start(command, f"{name}.log")
        return self.nodes[name]

    def start_bad_node(self, name: str, worker: Path) -> None:
        """Start a site whose worker is a program of the tests."""
        self._start([sys.executable, str(worker), str(self.parts / name / "site.toml")], "bad.log")
        self.start_node(name, "--part", "supernode")

    def start(self) -> None:
        self.start_superlink()
        for name in self.split():
            self.start_node(name)

    def run(self, *words: str) -> Process:
        command = [sys.executable, "-m", "fedpeft", "run", str(self.experiment), "--json"]
        return self._start([*command, "--out", str(self.out), *words], "run.err")

    def finish(self, run: Process, seconds: float = 240.0) -> tuple[int, dict[str, object]]:
        output, _ = run.popen.communicate(timeout=seconds)
        return run.popen.returncode, json.loads(output or "{}")

    def rounds(self) -> list[dict[str, object]]:
        file = self.out / "rounds.jsonl"
        if not file.exists():
            return []
        return [json.loads(line) for line in file.read_text().splitlines() if line.endswith("}")]

    def wait_for_round(self, number: int, run: Process) -> None:
        until(
            lambda: len(self.rounds()) >= number or run.popen.poll() is not None,
            f"round {number}",
            180.0,
        )
        assert run.popen.poll() is None, run.text()

    def server_app(self) -> psutil.Process:
        """Find the ServerApp below this SuperLink."""
        assert self.superlink is not None
        below = psutil.Process(self.superlink.popen.pid).children(recursive=True)
        (found,) = [each for each in below if "flwr-serverapp" in " ".join(each.cmdline())]
        return found

    def local(self, **changes: object) -> dict[str, object]:
        """Run the same experiment on the local engine."""
        done = self.command(
            "run", str(DIGITS), *self.sets, "--json",
            "--out", str(self.folder / f"local{len(changes)}"),
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        found: dict[str, object] = json.loads(done.stdout)
        return found

    def close(self) -> None:
        for process in reversed(self._running):
            process.end()

    def _start(self, command: Sequence[str], log: str) -> Process:
        process = Process(command, self.folder / log, self.folder / "home")
        self._running.append(process)
        return process

    def _answers(self) -> bool:
        with socket.socket() as probe:
            probe.settimeout(1.0)
            return probe.connect_ex(("127.0.0.1", self.port)) == 0


@contextlib.contextmanager
def federation(folder: Path, *sets: str, clients: int = 2) -> Iterator[Federation]:
    made = Federation(folder, *sets, clients=clients)
    try:
        yield made
    finally:
        made.close()
