"""Versions and hardware of this machine, for `environment.json` and `fedpeft doctor`."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from collections.abc import Mapping

from fedpeft.core.cpus import num_cores

PACKAGES = (
    "fedpeft", "torch", "transformers", "peft", "safetensors", "numpy", "datasets", "tokenizers",
    "scikit-learn", "pydantic",
)  # fmt: skip
"""Packages whose versions can change a result."""


def describe_environment(seed: int) -> dict[str, object]:
    """Describe this machine and its software.

    Args:
      seed: root seed of the run.
    """
    return {"seed": seed, "versions": versions(), "hardware": _hardware()}


def versions(packages: tuple[str, ...] = PACKAGES) -> dict[str, str | None]:
    """Return package -> version, None where it is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    return found | {package: _version(package) for package in packages}


def memory_bytes() -> int | None:
    """Return the size of this machine's memory in bytes; None where the system does not tell."""
    if not hasattr(os, "sysconf"):
        return None
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        loaded = sys.modules.get(package)
        return getattr(loaded, "__version__", None)


def _hardware() -> Mapping[str, object]:
    import torch

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "system": platform.platform(),
        "processor": _processor(),
        "cores": num_cores(),
        "memory_bytes": memory_bytes(),
        "gpus": gpus,
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as opened:
            names = [line.split(":", 1)[1].strip() for line in opened if "model name" in line]
    except OSError:
        names = []
    return names[0] if names else platform.processor()
