"""Contestants' own environments: `build/bench-venvs/NAME`, made when a row first needs them.

A contestant whose environment cannot be made is reported as such; nothing stands in for it.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from bench.machine import ROOT

__all__ = ["REQUIREMENTS", "EnvironmentMissing", "python_of", "python_with_flower"]

TORCH = "torch==2.13.0"

REQUIREMENTS: Mapping[str, Sequence[str]] = {
    "flower": (
        "flwr[simulation]==1.41.0",
        TORCH,
        "transformers==5.23.0",
        "peft==0.21.2",
        "numpy==2.4.6",
    ),
    "pfl": ("pfl==0.6.0", TORCH, "transformers==5.23.0", "peft==0.21.2", "numpy==2.4.6"),
}
"""What is installed, pinned, in one command: a resolver that does not see torch's version picks a
build for a GPU."""


class EnvironmentMissing(RuntimeError):
    """A contestant's environment could not be made."""


def python_of(name: str, *, timeout: float = 900) -> Path:
    """Return the interpreter of a contestant's environment, made if need be.

    `FEDPEFT_BENCH_PYTHON_<NAME>` names an interpreter that is there already.

    Raises:
      EnvironmentMissing: with what pip said.
    """
    if given := os.environ.get(f"FEDPEFT_BENCH_PYTHON_{name.upper()}"):
        return Path(given)
    folder = ROOT / "build" / "bench-venvs" / name
    python, stamp = folder / "bin" / "python", folder / "installed"
    wanted = hashlib.sha256("\n".join(REQUIREMENTS[name]).encode()).hexdigest()
    if stamp.exists() and stamp.read_text("ascii") == wanted:
        return python
    shutil.rmtree(folder, ignore_errors=True)
    print(f"making {folder} ...", file=sys.stderr, flush=True)
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    _run([sys.executable, "-m", "venv", str(folder)], name, timeout)
    _run([*pip, *REQUIREMENTS[name]], name, timeout)
    stamp.write_text(wanted, "ascii")
    return python


def python_with_flower() -> Path:
    """Return this interpreter where it has Flower and Ray of the version wanted, else its own."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        found = version("flwr")
    except PackageNotFoundError:
        found = ""
    if found == "1.41.0" and importlib.util.find_spec("ray") is not None:
        return Path(sys.executable)
    return python_of("flower")


def _run(command: Sequence[str], name: str, timeout: float) -> None:
    try:
        subprocess.run(command, check=True, timeout=timeout, capture_output=True, text=True)
    except subprocess.CalledProcessError as error:
        words = (error.stderr or error.stdout)[-600:]
        raise EnvironmentMissing(f"{name}: cannot be installed here: {words}") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise EnvironmentMissing(f"{name}: cannot be installed here: {error}") from error
