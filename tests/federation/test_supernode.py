"""A site's processes: started again, ended together, and told exactly what the site's file says."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from fedpeft.core.errors import ConfigError, EngineError
from fedpeft.federation import processes
from fedpeft.federation import supernode as nodes
from fedpeft.federation.processes import Child, follow
from fedpeft.federation.supernode import NodeSettings, key_id, supernode, trusted_entities

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJv4ZfoCDA0Yw1ZmlEC2q7FWSrL7G0GHVMydpE0Ra2w9 someone"


ALWAYS = {"": 100.0}
"""Patience with every end."""


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(processes, "_GRACE", 1.0)
    monkeypatch.setattr(processes, "_PAUSE", 0.1)


def python(code: str, name: str = "child", **more: object) -> Child:
    return Child(name, [sys.executable, "-c", code], **more)


def until(true, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


def for_a_while(seconds: float, after: Callable[[], bool]) -> Callable[[], bool]:
    """A condition that holds until some seconds after something is seen, however late it is."""
    seen: list[float] = []
    latest = time.monotonic() + 60

    def goes_on() -> bool:
        if not seen and after():
            seen.append(time.monotonic())
        return time.monotonic() < (seen[0] + seconds if seen else latest)

    return goes_on


def alive(number: int) -> bool:
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    return "zombie" not in Path(f"/proc/{number}/status").read_text()


def pids_in(file: Path) -> list[int]:
    return [int(word) for word in file.read_text().split()] if file.exists() else []


def sleeper(file: Path) -> str:
    """Code that writes its process number into a file and sleeps."""
    return f"import os, time; open({str(file)!r}, 'a').write(f'{{os.getpid()}} '); time.sleep(60)"


def test_a_child_that_is_killed_is_started_again(tmp_path):
    killed: list[int] = []

    def goes_on() -> bool:
        pids = pids_in(tmp_path / "pids")
        if len(pids) == 1 and not killed:
            killed.append(pids[0])
            os.kill(pids[0], signal.SIGKILL)
        return len(pids) < 2

    follow([python(sleeper(tmp_path / "pids"))], goes_on=goes_on)
    until(lambda: not alive(pids_in(tmp_path / "pids")[1]))


def test_a_child_that_fails_at_once_ends_all_with_its_last_words(tmp_path):
    broken = python("print('no such key'); raise SystemExit(3)", advice={"such key": "Make one."})
    with pytest.raises(EngineError, match=r"exit code 3 after .*\n  no such key\nMake one\."):
        follow([python("import time; time.sleep(60)", "other"), broken])


def test_a_node_that_is_not_let_in_yet_is_tried_again(tmp_path):
    """As after a crash: the server believes for a while that it is still there."""
    tries = tmp_path / "tries"
    code = (
        f"import time, pathlib; p = pathlib.Path({str(tries)!r}); "
        "n = len(p.read_text()) if p.exists() else 0; p.write_text('x' * (n + 1)); "
        "n < 2 and (print('Exit Code: 305'), exit(1)); time.sleep(60)"
    )
    child = python(code, advice=nodes._ADVICE, patience={"Exit Code: 305": 100.0})
    follow([child], goes_on=lambda: not tries.exists() or len(tries.read_text()) < 3)


def test_one_that_is_never_let_in_ends():
    child = python(
        "print('Exit Code: 305'); exit(1)", advice=nodes._ADVICE, patience={"Exit Code: 305": 0.5}
    )
    with pytest.raises(EngineError, match="Is its key registered there"):
        follow([child])


def test_a_wrong_authority_is_named_at_once_and_never_called_a_missing_key(tmp_path):
    """Flower ends with the same exit code for both."""
    words = "[SSL: CERTIFICATE_VERIFY_FAILED] self-signed certificate in chain. Exit Code: 305"
    child = python(
        f"print({words!r}); exit(1)", advice=nodes._ADVICE, patience={"Exit Code: 305": 100.0}
    )
    with pytest.raises(EngineError, match="root_certificates vouches for") as error:
        follow([child])
    assert "registered" not in str(error.value)


def test_a_supernode_whose_connection_is_over_is_started_again(tmp_path):
    """Flower's loop returns then, and a thread of its own would keep the process for ever."""
    code = (
        "import threading, time; from fedpeft.federation.supernode_program import end_with; "
        f"open({str(tmp_path / 'starts')!r}, 'a').write('x'); "
        "threading.Thread(target=time.sleep, args=(60,)).start(); "
    )
    starts = lambda: len((tmp_path / "starts").read_text())  # noqa: E731
    follow([python(code + "time.sleep(0.1); end_with(lambda: None)", patience=ALWAYS)],
           goes_on=lambda: not (tmp_path / "starts").exists() or starts() < 2)  # fmt: skip
    (tmp_path / "starts").write_text("")
    goes_on = for_a_while(2.0, after=lambda: starts() > 0)
    follow([python(code, patience=ALWAYS)], goes_on=goes_on)  # the control: the thread keeps it
    assert starts() == 1


@pytest.mark.parametrize(
    ("code", "number"),
    [("raise SystemExit(5)", 5), ("raise SystemExit('no')", 1), ("raise KeyError(3)", 1), ("", 1)],
)
def test_a_supernodes_exit_code_is_kept(code, number):
    ended = subprocess.run(
        [sys.executable, "-c", "from fedpeft.federation.supernode_program import end_with\n"
         f"def run():\n  print('last words')\n  {code}\nend_with(run)"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ended.returncode == number and "last words" in ended.stdout
    assert ("KeyError" in ended.stderr) is ("Key" in code)


def test_children_of_children_end_too(tmp_path):
    file = tmp_path / "pid"
    code = (
        "import subprocess, sys, time; "
        f"subprocess.Popen([sys.executable, '-c', {sleeper(file)!r}]); time.sleep(60)"
    )
    follow([python(code)], goes_on=lambda: not pids_in(file))
    until(lambda: not alive(pids_in(file)[0]))


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's word for it is Linux's")
def test_children_end_with_a_parent_that_is_killed(tmp_path):
    file = tmp_path / "pid"
    code = (
        "import sys; from fedpeft.federation.processes import Child, follow; "
        f"follow([Child('c', [sys.executable, '-c', {sleeper(file)!r}])])"
    )
    parent = subprocess.Popen([sys.executable, "-c", code])
    until(lambda: pids_in(file))
    parent.kill()
    parent.wait()
    until(lambda: not alive(pids_in(file)[0]))


@pytest.mark.skipif(sys.platform != "linux", reason="seen in /proc")
@pytest.mark.parametrize("needs", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_child_whose_helper_died_is_started_again(tmp_path, monkeypatch, needs):
    """As Flower's starter of apps, which one answer of 500 ends: the rest of it lives on."""
    monkeypatch.setattr(processes, "_LOOK", 0.2)
    starts = tmp_path / "starts"
    code = (
        f"import subprocess, time; open({str(starts)!r}, 'a').write('x'); "
        "one = subprocess.Popen(['true']); time.sleep(60)"
    )
    number = lambda: len(starts.read_text()) if starts.exists() else 0  # noqa: E731
    goes_on = for_a_while(60.0 if needs else 1.5, after=lambda: number() > 0)  # 1.5: the control
    follow([python(code, patience=ALWAYS, needs_helpers=needs)],
           goes_on=lambda: number() < 2 and goes_on())  # fmt: skip
    assert number() == (2 if needs else 1)


def test_a_program_that_is_not_there_is_said():
    with pytest.raises(EngineError, match="the ghost cannot be started"):
        follow([Child("ghost", ["/no/such/program"])])
    with pytest.raises(EngineError, match=r"no-such: not found on this machine; install Flower"):
        processes.program("no-such")


def test_a_key_has_one_name_everywhere(tmp_path):
    (tmp_path / "key.pub").write_text(KEY + "\n")
    assert (
        key_id(KEY)
        == key_id(KEY.rsplit(" ", 1)[0])
        != key_id(KEY.replace("JSnv", "JSnw", 1).replace("Ra2w9", "Ra2w8"))
    )
    assert trusted_entities([str(tmp_path / "key.pub")]) == trusted_entities([KEY])
    assert trusted_entities([KEY]) == f"{key_id(KEY)}: {KEY.rsplit(' ', 1)[0]}\n"


@pytest.mark.parametrize(
    "line", ["", "ssh-rsa AAAA", "ssh-ed25519", "ssh-ed25519 !!", "ssh-ed25519 AAAA"]
)
def test_what_is_no_ed25519_key_is_refused(line):
    with pytest.raises(ConfigError, match="trusted key: found"):
        key_id(line)


def test_the_supernode_is_told_what_the_file_says(tmp_path, monkeypatch):
    monkeypatch.setattr(nodes, "program", lambda name: f"/bin/{name}")
    open_ = supernode(NodeSettings("127.0.0.1:1", tmp_path, {"site": "a"}))
    assert "--insecure" in open_.command and "--trusted-entities" not in open_.command
    safe = supernode(
        NodeSettings(
            "box:1", tmp_path, {"site": "a", "seconds": 3.0}, "ca.crt", "key",
            tmp_path / "trusted.yaml", 4711,
        )
    )  # fmt: skip
    words = " ".join(safe.command)
    assert "--insecure" not in words and "--root-certificates ca.crt" in words
    assert "--auth-supernode-private-key key" in words and "--trusted-entities" in words
    assert "--host 127.0.0.1 --port 4711" in words and 'site="a" seconds=3.0' in safe.command
    assert "--allow-runtime-dependency-installation" not in words


def test_a_path_that_flower_cannot_take_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(nodes, "program", lambda name: f"/bin/{name}")
    with pytest.raises(ConfigError, match="quotes and backslashes cannot stand"):
        supernode(NodeSettings("a:1", tmp_path, {"door": 'x" evil="y'}))
