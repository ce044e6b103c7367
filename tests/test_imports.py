"""What the package imports is declared, and is there on every system."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator

import pytest

import house

PROJECT = tomllib.loads((house.PACKAGE.parent.parent / "pyproject.toml").read_text("utf-8"))
FILES = sorted(house.PACKAGE.rglob("*.py"))


def names_of(requirements: list[str]) -> frozenset[str]:
    """Return the distributions that requirements name, those of a named extra included."""
    found = set()
    for name, extra in (
        re.match(r"([\w.-]+)(?:\[(\w+)\])?", each).groups() for each in requirements
    ):
        found.add(normal(name))
        if extra:
            needs = importlib.metadata.requires(name) or []
            found |= names_of([each for each in needs if f"extra == '{extra}'" in each])
    return frozenset(found)


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


NEEDED = names_of(PROJECT["project"]["dependencies"])
EXTRAS = names_of(
    [each for needs in PROJECT["project"]["optional-dependencies"].values() for each in needs]
)
MODULES = {
    module: {normal(name) for name in names}
    for module, names in importlib.metadata.packages_distributions().items()
}
"""Which installed distributions have a module."""


NOT_WHEN_IMPORTED = ("TYPE_CHECKING", "__name__ == '__main__'")


def imported(text: str) -> Iterator[tuple[str, bool]]:
    """Yield each library that a text imports, and whether it is needed to import the text."""
    tree = ast.parse(text)
    late = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        or (isinstance(node, ast.If) and ast.unparse(node.test) in NOT_WHEN_IMPORTED)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            found = [node.module]
        else:
            continue
        for name in (each.partition(".")[0] for each in found):
            if name != "fedpeft" and name not in sys.stdlib_module_names:
                yield name, id(node) not in late


def undeclared(text: str) -> set[str]:
    """Return libraries of a text that are not declared, and extras that it cannot do without."""
    return {
        name
        for name, at_once in imported(text)
        if not MODULES.get(name, set()) & (NEEDED if at_once else NEEDED | EXTRAS)
    }


def test_every_imported_library_is_declared():
    found = {str(file): undeclared(file.read_text("utf-8")) for file in FILES}
    assert {file: names for file, names in found.items() if names} == {}


def test_every_declared_library_is_imported():
    used = {name for file in FILES for name, _ in imported(file.read_text("utf-8"))}
    assert {each for name in used for each in MODULES.get(name, ())} >= NEEDED


@pytest.mark.parametrize("text", ["import joblib.memory", "import flwr", "from absent import x"])
def test_an_undeclared_import_is_seen(text):
    assert undeclared(text) == {text.split()[1].partition(".")[0]}
    assert not undeclared("import torch.nn\nimport json\ndef f():\n  from flwr.app import Message")


ELSEWHERE = """
import contextlib, ctypes, importlib, multiprocessing, os, pkgutil, signal, socket, sys
import fedpeft

def every_module():
    for found in pkgutil.walk_packages(fedpeft.__path__, "fedpeft."):
        if not found.name.endswith("__main__"):
            importlib.import_module(found.name)

every_module()  # other libraries see the system as it is
for name in [name for name in sys.modules if name.partition(".")[0] == "fedpeft"]:
    del sys.modules[name]
for name in "fcntl resource termios pwd grp pty tty syslog posix".split():
    sys.modules[name] = None
for name in (
    "fork forkpty getuid geteuid getgid getegid getpgid getpgrp setsid killpg sched_getaffinity "
    "sched_setaffinity sysconf sysconf_names statvfs fchmod fchown chown mkfifo memfd_create "
    "getloadavg uname nice openpty register_at_fork waitid WNOHANG O_DIRECTORY O_NOFOLLOW "
    "O_CLOEXEC posix_fallocate posix_fadvise sendfile pread pwrite"
).split():
    with contextlib.suppress(AttributeError):
        delattr(os, name)
for name in "SIGKILL SIGHUP SIGQUIT SIGUSR1 SIGUSR2 SIGALRM SIGCHLD SIGPIPE SIGTSTP".split():
    delattr(signal, name)
for name in ("alarm", "setitimer", "pthread_sigmask", "pause", "sigwait"):
    delattr(signal, name)
del socket.AF_UNIX
for name in ("ForkProcess", "ForkServerProcess", "ForkContext", "ForkServerContext"):
    delattr(multiprocessing.context, name)
real = ctypes.CDLL

def library(name, *args, **options):
    if name is None or str(name).startswith("libc"):
        raise TypeError("there is no such library here")
    return real(name, *args, **options)

ctypes.CDLL = library
sys.platform = "win32"
"""
"""A process that lacks what Windows lacks, once its libraries are loaded."""


def elsewhere(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", ELSEWHERE + code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_module_can_be_imported_where_posix_is_missing():
    assert elsewhere("import fedpeft; every_module(); print('fedpeft.cli.app' in sys.modules)") == (
        "True\n"
    )


def test_what_posix_alone_has_is_missed_there():
    lines = ["import fcntl", "os.getuid()", "signal.SIGKILL", "ctypes.CDLL(None)", "os.getpid()"]
    code = f"""
for line in {lines}:
    try:
        exec(line)
    except (ImportError, AttributeError, TypeError):
        print(line)
"""
    assert elsewhere(code).splitlines() == lines[:-1]


@pytest.mark.slow
def test_the_record_of_this_machine_is_made_there_too():
    code = "from fedpeft.runs.environment import memory_bytes; print(memory_bytes())"
    assert elsewhere(code) == "None\n"
