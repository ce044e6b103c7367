"""The machine: what it is, how much of it others use, and the environment of a contestant."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Mapping
from pathlib import Path

__all__ = ["ROOT", "SCRATCH", "child_environment", "cores", "describe", "others"]

ROOT = Path(__file__).parents[1]
"""The repository."""

SCRATCH = ROOT / "build" / "bench"
"""Where rows put what need not stay."""

_QUIET = {
    "OMP_WAIT_POLICY": "PASSIVE",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "PYTHONWARNINGS": "ignore",
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DISABLE_IMPORT_WARNING": "1",
}


def child_environment(*, threads: int | None, **more: str) -> dict[str, str]:
    """Return the environment variables of a contestant's process.

    Args:
      threads: `OMP_NUM_THREADS`; None leaves it to the contestant.
      more: variables of its own.
    """
    kept = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    path = os.pathsep.join([str(ROOT), str(ROOT / "src")])
    given = {} if threads is None else {"OMP_NUM_THREADS": str(threads)}
    home = {"FLWR_HOME": str(SCRATCH / "flwr")}
    return {**kept, **_QUIET, **home, "PYTHONPATH": path, **given, **more}


def cores() -> int:
    """Count the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def others(seconds: float = 0.3) -> float:
    """Return the share of the machine's cores in use over some seconds in which we do nothing."""
    before = _ticks()
    time.sleep(seconds)
    after = _ticks()
    if before is None or after is None or after[0] == before[0]:
        return 0.0
    return round(1 - (after[1] - before[1]) / (after[0] - before[0]), 3)


def describe() -> Mapping[str, object]:
    """Describe the hardware."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "processor": _processor(),
        "cores": cores(),
        "memory_gib": round(memory / 2**30, 1),
        "system": platform.platform(),
        "python": platform.python_version(),
    }


def _ticks() -> tuple[int, int] | None:
    """All ticks of all cores, and the idle ones among them."""
    try:
        line = Path("/proc/stat").read_text("ascii").split("\n", 1)[0]
    except OSError:
        return None
    numbers = [int(word) for word in line.split()[1:9]]
    return sum(numbers), numbers[3] + numbers[4]


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
