"""A site's two processes: its own worker, and the SuperNode that speaks with the server.

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
_NOT_LET_IN = "Exit Code: 305"
_GRACE = 10.0
_LIBC = ctypes.CDLL(None)  # before any fork: a child of threads may load nothing
_DEATH_SIGNAL = 1


@dataclass(frozen=True)
class NodeSettings:
    """What a SuperNode is told.

    Attributes:
      address: host:port of the SuperLink.
      home: folder for Flower's own files.
      config: words for the app, such as where the worker listens.
      root_certificates: vouch for the server; None speaks without TLS.
      private_key: of this node; None joins without authentication.
      trusted: file of trusted entities; None runs any bundle.
      port: of its interface for the app, on loopback; None takes a free one.
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
      name: for the log.
      command: with its arguments.
      environment: added to this process's own.
      advice: what to do, by a word of its last words.
    """

    name: str
    command: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    advice: Mapping[str, str] = field(default_factory=dict)


def key_id(public_key: str) -> str:
    """Return the name of an `ssh-ed25519` public key: the same at every site and signer.

    Raises:
      ConfigError: if it is no such key.
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
    """Write keys, given as lines or files, as Flower's table of trusted entities (YAML).

    Raises:
      ConfigError: if one is no Ed25519 public key.
    """
    lines = [key if key.startswith("ssh-") else Path(key).read_text("utf-8") for key in keys]
    return "".join(f"{key_id(line)}: {' '.join(line.split()[:2])}\n" for line in lines)


def supernode(settings: NodeSettings) -> Child:
    """Describe the SuperNode's process.

    Raises:
      EngineError: if Flower is not installed here.
    """
    program = _program("flower-supernode")
    config = " ".join(f"{name}={_literal(value)}" for name, value in settings.config.items())
    command = [program, "--superlink", settings.address, "--node-config", config]
    command += ["--host", "127.0.0.1", "--port", str(settings.port or _free_port())]
    if settings.root_certificates is None:
        command += ["--insecure"]
    else:
        command += ["--root-certificates", settings.root_certificates]
    if settings.private_key is not None:
        command += ["--auth-supernode-private-key", settings.private_key]
    if settings.trusted is not None:
        command += ["--trusted-entities", str(settings.trusted)]
    environment = {
        "FLWR_HOME": str(settings.home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "PATH": f"{Path(program).parent}{os.pathsep}{os.environ.get('PATH', '')}",
    }
    return Child("supernode", command, environment, _ADVICE)


_ADVICE: Mapping[str, str] = {
    _NOT_LET_IN: "The server does not let this site in. Is its key registered there (`flwr "
    "supernode register SITE.pub`), and not in use by another node? A node that was killed is "
    "forgotten after a minute.",
    "address already in use": "Leave superlink.runtime_port out, or choose a free one.",
}


def follow(children: Sequence[Child], *, goes_on: Callable[[], bool] = lambda: True) -> None:
    """Run processes until `goes_on` says no, and end them whatever happens to this one.

    Raises:
      EngineError: if one cannot be kept running, with its last words.
    """
    with contextlib.ExitStack() as stack:
        running = [stack.enter_context(_Running(child)) for child in children]
        while goes_on():
            for one in running:
                one.look()
            time.sleep(0.2)


class _Running:
    """One process, started again when it ends."""

    def __init__(self, child: Child) -> None:
        self._child = child
        self._ends: collections.deque[float] = collections.deque(maxlen=_MOST_QUICK_ENDS)
        self._words: collections.deque[str] = collections.deque(maxlen=12)
        self._again: float | None = None

    def __enter__(self) -> _Running:
        self._start()
        self._first = self._trouble = self._began
        return self

    def __exit__(self, *_: object) -> None:
        _end(self._process)
        self._relay.join(timeout=2)

    def look(self) -> None:
        """Start it again if it has ended.

        Raises:
          EngineError: if it ended at once by itself, or ends again and again.
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
        said = "\n  ".join(self._words) or "nothing"
        word = next((word for word in self._child.advice if word in said), "")
        if now - self._began > _QUICK:
            self._trouble = now
        excused = word == _NOT_LET_IN and now - self._trouble < _FORGOTTEN
        at_once = code > 0 and now - self._began < _QUICK and self._first == self._began
        often = len(self._ends) == _MOST_QUICK_ENDS and now - self._ends[0] < 10 * _QUICK
        advice = self._child.advice.get(word, "")
        if not excused and (at_once or often or word):
            raise EngineError(
                f"the {self._child.name} ended with exit code {code} after {now - self._began:.0f} "
                f"s. Its last words:\n  {said}\n{advice}"
            )
        if excused:
            self._ends.clear()
        logger.warning(
            "the %s ended with exit code %s; it is started again. %s",
            self._child.name,
            code,
            advice,
        )
        self._again = now + (_PAUSE if excused else 0.0)

    def _start(self) -> None:
        child = self._child
        self._began, self._again = time.monotonic(), None
        self._words.clear()
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
        assert process.stdout is not None, "it is a pipe"
        with process.stdout as lines:
            for line in lines:
                if not line.startswith("INFO"):  # the web server's own
                    self._words.append(line.rstrip())
                sys.stderr.write(f"[{self._child.name}] {line}")
                sys.stderr.flush()


def _end(process: subprocess.Popen[str]) -> None:
    """End a process and all that it has started: asked first, then killed."""
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
    """Ask the kernel to end this process when its parent is gone (Linux)."""
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
    """Write a value as TOML that Flower's `--node-config` takes.

    Raises:
      ConfigError: for what it cannot take.
    """
    if isinstance(value, str) and (set(value) & {'"', "'", "\\", "\n"} or not value.isprintable()):
        raise ConfigError(f"{value!r}: quotes and backslashes cannot stand in a path of a site")
    return f'"{value}"' if isinstance(value, str) else repr(value)
