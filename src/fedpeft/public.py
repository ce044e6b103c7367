"""The public names of the package, gathered from the rooms in which they live.

`fedpeft` itself imports this file when one of them is used: torch and transformers take seconds.
"""

from __future__ import annotations

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
