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

import os
from typing import TYPE_CHECKING

from fedpeft.core.version import VERSION

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: its threads spin otherwise
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # workers are forked

if TYPE_CHECKING:
    from fedpeft.public import (
        Algorithm,
        Callback,
        Columns,
        DataRequest,
        Engine,
        FedpeftError,
        LocalTrainer,
        Metric,
        ModelRequest,
        Partition,
        PartitionRequest,
        Result,
        RoundRecord,
        Sampler,
        Scores,
        Stage,
        Task,
        TransformSpec,
        TunedModel,
        TuningMethod,
        TuningRequest,
        classification_task,
        custom_task,
        from_datasets,
        from_peft,
        from_torch,
        init_head,
        load,
        load_data,
        load_model,
        run,
        simulate,
        tune,
        wrap_module,
    )

__all__ = [
    "Algorithm",
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

__version__ = VERSION


def __getattr__(name: str) -> object:
    if name in __all__:
        from fedpeft import public  # late: see there

        return getattr(public, name)
    raise AttributeError(f"module 'fedpeft' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
