"""A site's two processes: its own worker, and the SuperNode that is connected to the server.

    fedpeft node ──┬── worker (backbone, data)          started again after a crash
                   └── flower-supernode ── app ──> worker's socket

Both end with this process, however it ends. The bundles that a server sends run below the
SuperNode, and only if one of the site's trusted keys has signed them.
"""

from __future__ import annotations

import base64
import collections
import contextlib
import ctypes
import hashlib
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fedpeft.core.errors import ConfigError, EngineError

__all__ = ["Child", "NodeSettings", "follow", "key_id", "supernode", "trusted_entities"]

logger = logging.getLogger(__name__)

_QUICK = 30.0
_MOST_QUICK_ENDS = 5
_PAUSE = 10.0
_FORGOTTEN = 100.0  # a server forgets a node that was killed after two heartbeats of 30 s
_NOT_ADMITTED = "Exit Code: 305"
_GRACE = 10.0
_LIBC = ctypes.CDLL(None)  # loaded here: a forked child of a threaded process may load nothing
_DEATH_SIGNAL = 1


@dataclass(frozen=True)
class NodeSettings:
    """The settings of a SuperNode.

    Attributes:
      address: HOST:PORT of the SuperLink.
      home: folder for Flower's own files.
      config: settings for the app, such as where the worker listens.
      root_certificates: file that the server's certificate is checked against; None for no TLS.
      private_key: this node's key file; None joins without authentication.
      trusted: file of trusted entities; None runs any bundle.
      port: on loopback, of its interface for the app; None takes a free one.
    """

    address: str
    home: Path
    config: Mapping[str, str | float]
    root_certificates: str | None = None
    private_key: str | None = None
    trusted: Path | None = None
    port: int | None = None


@dataclass(frozen=True)
class Child:
    """A process to start and to follow.

    Attributes:
      name: its name in the log.
      command: the program and its arguments.
      environment: variables added to this process's own.
      advice: a text in its output -> what to do when it ends with that.
    """

    name: str
    command: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    advice: Mapping[str, str] = field(default_factory=dict)


def key_id(public_key: str) -> str:
    """Return the name of an `ssh-ed25519` public key, the same at every site and signer.

    Raises:
      ConfigError: if it is not such a key.
    """
    parts = public_key.split()
    try:
        data = base64.b64decode(parts[1], validate=True) if parts[0] == "ssh-ed25519" else b""
    except (IndexError, ValueError):
        data = b""
    if len(data) != 51:
        raise ConfigError(
            f"trusted key: found {public_key[:60]!r}; allowed is a line `ssh-ed25519 AAAA...`, as "
            "`ssh-keygen -t ed25519` writes into the .pub file"
        )
    return f"fpk_{hashlib.sha256(data).hexdigest()[:32]}"


def trusted_entities(keys: Sequence[str]) -> str:
    """Return keys, given as lines or files, as Flower's table of trusted entities (YAML).

    Raises:
      ConfigError: if one is not an Ed25519 public key.
    """
    lines = [key if key.startswith("ssh-") else Path(key).read_text("utf-8") for key in keys]
    return "".join(f"{key_id(line)}: {' '.join(line.split()[:2])}\n" for line in lines)


def supernode(settings: NodeSettings) -> Child:
    """Return the SuperNode's command and environment.

    Raises:
      EngineError: if Flower is not installed here.
    """
    program = _program("flower-supernode")
    config = " ".join(f"{name}={_literal(value)}" for name, value in settings.config.items())
    command = [program, "--superlink", settings.address, "--node-config", config]
    command += ["--host", "127.0.0.1", "--port", str(settings.port or _free_port())]
    command += [] if settings.root_certificates else ["--insecure"]
    for option, file in (
        ("--root-certificates", settings.root_certificates),
        ("--auth-supernode-private-key", settings.private_key),
        ("--trusted-entities", settings.trusted),
    ):
        command += [option, str(file)] if file is not None else []
    environment = {
        "FLWR_HOME": str(settings.home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "PATH": f"{Path(program).parent}{os.pathsep}{os.environ.get('PATH', '')}",
    }
    return Child("supernode", command, environment, _ADVICE)


_ADVICE: Mapping[str, str] = {
    _NOT_ADMITTED: "The server does not admit this site. Is its key registered there (`flwr "
    "supernode register SITE.pub`), and not in use by another node? A node that was killed is "
    "forgotten after a minute.",
    "address already in use": "Leave superlink.runtime_port out, or choose a free one.",
}


def follow(children: Sequence[Child], *, goes_on: Callable[[], bool] = lambda: True) -> None:
    """Run processes while `goes_on` returns true, and end them whatever happens to this one.

    Raises:
      EngineError: if one cannot be kept running, with its last output.
    """
    with contextlib.ExitStack() as stack:
        running = [stack.enter_context(_Running(child)) for child in children]
        while goes_on():
            for one in running:
                one.check()
            time.sleep(0.2)


class _Running:
    """A process that is started again when it ends."""

    def __init__(self, child: Child) -> None:
        self._child = child
        self._ends: collections.deque[float] = collections.deque(maxlen=_MOST_QUICK_ENDS)
        self._lines: collections.deque[str] = collections.deque(maxlen=12)
        self._again: float | None = None

    def __enter__(self) -> _Running:
        self._start()
        self._first = self._trouble = self._began
        return self

    def __exit__(self, *_: object) -> None:
        _end(self._process)
        self._relay.join(timeout=2)

    def check(self) -> None:
        """Start the process again if it has ended.

        Raises:
          EngineError: if it ended by itself right after its first start, or ends repeatedly.
        """
        now = time.monotonic()
        if self._again is not None:
            if now >= self._again:
                self._start()
            return
        code = self._process.poll()
        if code is None:
            return
        _end(self._process)
        self._relay.join(timeout=2)
        self._ends.append(now)
        name, lived = self._child.name, now - self._began
        output = "\n  ".join(self._lines) or "nothing"
        known = next((text for text in self._child.advice if text in output), "")
        advice = self._child.advice.get(known, "")
        if lived > _QUICK:
            self._trouble = now
        excused = known == _NOT_ADMITTED and now - self._trouble < _FORGOTTEN
        at_once = code > 0 and lived < _QUICK and self._first == self._began
        often = len(self._ends) == _MOST_QUICK_ENDS and now - self._ends[0] < 10 * _QUICK
        if not excused and (at_once or often or known):
            raise EngineError(
                f"the {name} ended with exit code {code} after {lived:.0f} s. Its last output:\n  "
                f"{output}\n{advice}"
            )
        if excused:
            self._ends.clear()
        logger.warning("the %s ended with exit code %s; starting it again. %s", name, code, advice)
        self._again = now + (_PAUSE if excused else 0.0)

    def _start(self) -> None:
        child = self._child
        self._began, self._again = time.monotonic(), None
        self._lines.clear()
        try:
            self._process = subprocess.Popen(
                child.command,
                env={**os.environ, **child.environment},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                start_new_session=True,
                preexec_fn=_die_with_parent if sys.platform == "linux" else None,
            )
        except OSError as error:
            raise EngineError(f"the {child.name} cannot be started: {error}") from error
        self._relay = threading.Thread(target=self._read, args=(self._process,), daemon=True)
        self._relay.start()

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None, "stdout is a pipe"
        with process.stdout as lines:
            for line in lines:
                if not line.startswith("INFO"):  # lines of Flower's web server
                    self._lines.append(line.rstrip())
                sys.stderr.write(f"[{self._child.name}] {line}")
                sys.stderr.flush()


def _end(process: subprocess.Popen[str]) -> None:
    """End a process and all that it has started: SIGTERM first, then SIGKILL."""
    for number, patience in ((signal.SIGTERM, _GRACE), (signal.SIGKILL, 2.0)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        until = time.monotonic() + patience
        while time.monotonic() < until and _group_lives(process):
            time.sleep(0.05)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=10)


def _group_lives(process: subprocess.Popen[str]) -> bool:
    process.poll()
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, 0)
        return True
    return False


def _die_with_parent() -> None:
    """Have the kernel end this process when its parent is gone (Linux)."""
    _LIBC.prctl(_DEATH_SIGNAL, signal.SIGTERM)


def _program(name: str) -> str:
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        raise EngineError(
            f"{name}: not found; install Flower on this machine: pip install 'fedpeft[flower]'"
        )
    return found


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _literal(value: str | float) -> str:
    """Return a value as TOML for Flower's `--node-config`.

    Raises:
      ConfigError: if the value holds characters that Flower cannot read there.
    """
    if isinstance(value, str) and (set(value) & {'"', "'", "\\", "\n"} or not value.isprintable()):
        raise ConfigError(f"{value!r}: quotes and backslashes cannot stand in a path of a site")
    return f'"{value}"' if isinstance(value, str) else repr(value)
