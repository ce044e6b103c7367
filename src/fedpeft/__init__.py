"""Federated parameter-efficient fine-tuning: send the delta, not the model.

    import fedpeft

    summary = fedpeft.run("experiment.toml", {"tuning.method": "lora"})
    model = fedpeft.load(summary["run_dir"])

A model and data of your own:

    task = fedpeft.classification_task(lambda net, batch: net(batch["inputs"]))
    loaded = fedpeft.wrap_module(net, task=task, head=["head"])
    tuned = fedpeft.tune(loaded, fedpeft.TuningRequest("bias"))
    data = fedpeft.from_torch(train, test, clients=fedpeft.PartitionRequest(clients=20))
    result = fedpeft.simulate(tuned, data, {"federation.rounds": 20, "client.lr": 0.05})
"""

from __future__ import annotations

import importlib
import os
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: its threads spin otherwise
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # workers are forked

if TYPE_CHECKING:
    from fedpeft.core.errors import FedpeftError
    from fedpeft.data.load import load_data
    from fedpeft.data.request import Columns, DataRequest, TransformSpec
    from fedpeft.data.schemes import PartitionRequest
    from fedpeft.data.torch_data import from_torch
    from fedpeft.launch.simulate import Result, run, simulate
    from fedpeft.models.heads import init_head
    from fedpeft.models.source import ModelRequest, load_model
    from fedpeft.models.tasks import Scores, Task, classification_task
    from fedpeft.models.wrap import wrap_module
    from fedpeft.runs.load import load
    from fedpeft.tuning.methods import TuningRequest, tune
    from fedpeft.tuning.tuned import TunedModel

_HOMES = {
    "Columns": "data.request",
    "DataRequest": "data.request",
    "FedpeftError": "core.errors",
    "ModelRequest": "models.source",
    "PartitionRequest": "data.schemes",
    "Result": "launch.simulate",
    "Scores": "models.tasks",
    "Task": "models.tasks",
    "TransformSpec": "data.request",
    "TunedModel": "tuning.tuned",
    "TuningRequest": "tuning.methods",
    "classification_task": "models.tasks",
    "from_torch": "data.torch_data",
    "init_head": "models.heads",
    "load": "runs.load",
    "load_data": "data.load",
    "load_model": "models.source",
    "run": "launch.simulate",
    "simulate": "launch.simulate",
    "tune": "tuning.methods",
    "wrap_module": "models.wrap",
}
"""Where each public name lives. Names are imported when they are used: torch takes seconds."""

__all__ = [
    "Columns",
    "DataRequest",
    "FedpeftError",
    "ModelRequest",
    "PartitionRequest",
    "Result",
    "Scores",
    "Task",
    "TransformSpec",
    "TunedModel",
    "TuningRequest",
    "classification_task",
    "from_torch",
    "init_head",
    "load",
    "load_data",
    "load_model",
    "run",
    "simulate",
    "tune",
    "wrap_module",
]

try:
    __version__ = version("fedpeft")
except PackageNotFoundError:  # run from a source tree that was not installed
    __version__ = "0.1.0"


def __getattr__(name: str) -> object:
    if name in _HOMES:
        return getattr(importlib.import_module(f"fedpeft.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'fedpeft' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
