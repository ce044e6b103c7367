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

import logging
import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: its threads spin otherwise
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # workers are forked
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns of kernels nobody asked for

TYPE_CHECKING = False  # as in `typing`, which takes a while to import
if TYPE_CHECKING:
    from fedpeft.core.version import VERSION as __version__  # noqa: F401
    from fedpeft.public import *  # noqa: F403  # for type checkers; see `__getattr__`


def __getattr__(name: str) -> object:
    """Look a public name, or the list of them, up in `public.py`: it imports torch, so only now."""
    if name == "__version__":
        from fedpeft.core.version import VERSION

        return VERSION
    if name == "__all__" or not name.startswith("_"):
        import fedpeft.public as public

        if name == "__all__" or name in public.__all__:
            return getattr(public, name)
    raise AttributeError(f"module 'fedpeft' has no attribute {name!r}")


def __dir__() -> list[str]:
    import fedpeft.public as public

    return sorted([*public.__all__, "__version__"])
