"""The public names of the package, gathered from the rooms in which they live.

`fedpeft` itself imports this file when one of them is used: torch and transformers take seconds.
"""

from __future__ import annotations

from fedpeft.answers.scores import AnswerScore
from fedpeft.client.turns import LocalTrainer
from fedpeft.core.errors import FedpeftError
from fedpeft.core.metrics import Metric
from fedpeft.data.hf_data import from_datasets
from fedpeft.data.load import load_data
from fedpeft.data.request import Columns, DataRequest, TransformSpec
from fedpeft.data.schemes import Partition, PartitionRequest
from fedpeft.data.torch_data import from_torch
from fedpeft.experiment.callbacks import Callback
from fedpeft.launch.simulate import Result, run, simulate
from fedpeft.models.heads import init_head
from fedpeft.models.source import ModelRequest, load_model
from fedpeft.models.tasks import Scores, Task, classification_task, custom_task
from fedpeft.models.wrap import wrap_module
from fedpeft.rounds.job import Engine
from fedpeft.rounds.round_plan import RoundRecord
from fedpeft.runs.load import load
from fedpeft.server.sampling import Sampler
from fedpeft.server.state import Algorithm
from fedpeft.tuning.adopt import from_peft
from fedpeft.tuning.methods import TuningMethod, TuningRequest, tune
from fedpeft.tuning.tuned import TunedModel
from fedpeft.wire.stages import Stage

__all__ = [
    "Algorithm",
    "AnswerScore",
    "Callback",
    "Columns",
    "DataRequest",
    "Engine",
    "FedpeftError",
    "LocalTrainer",
    "Metric",
    "ModelRequest",
    "Partition",
    "PartitionRequest",
    "Result",
    "RoundRecord",
    "Sampler",
    "Scores",
    "Stage",
    "Task",
    "TransformSpec",
    "TunedModel",
    "TuningMethod",
    "TuningRequest",
    "classification_task",
    "custom_task",
    "from_datasets",
    "from_peft",
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
