"""The memory of training, before any training: weights, activations, delta, optimiser.

    weights       what the model stores, once for all workers
    activations   the most that a step or an evaluation holds at a time, in each worker
    delta         values, gradient, start and update of a client's delta, and the server's copies
    optimizer     its state, in each worker

Activations are found by running a step with tensors that have shapes and no memory, and counting
what lives at each moment. Scratch space of math libraries, and Python's own objects, are not in.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fedpeft.build.model import Sketch, local_settings
from fedpeft.client.checkpointing import checkpointed
from fedpeft.client.optimizers import state_bytes
from fedpeft.client.settings import autocast
from fedpeft.data.examples import ClientData, Federated, lengths_of
from fedpeft.experiment.experiment import num_together
from fedpeft.models.loaded import TextInput
from fedpeft.models.stored import num_bytes
from fedpeft.models.tasks import Batch, blank_labels, mean_loss

logger = logging.getLogger(__name__)

_EVALUATED = 64
"""Examples of an evaluation's batch, for models that give one answer for each."""


@dataclass(frozen=True)
class Memory:
    """Bytes that training takes; all workers together.

    Attributes:
      weights: of the model, frozen and trained, as they are stored.
      activations: None where they cannot be found without training.
      delta: copies of the delta, at the clients and the server.
      optimizer: state of the clients' optimisers.
    """

    weights: int
    activations: int | None
    delta: int
    optimizer: int

    @property
    def total(self) -> int:
        """All of it; without activations that are not known."""
        return self.weights + (self.activations or 0) + self.delta + self.optimizer

    def as_json(self) -> Mapping[str, object]:
        """Return the figures of a plan."""
        return {
            "memory_bytes": self.total,
            "memory": {
                "weights": self.weights,
                "activations": self.activations,
                "delta": self.delta,
                "optimizer": self.optimizer,
            },
        }


def planned_memory(sketch: Sketch, data: Federated | None) -> Memory:
    """Return the memory of a run.

    Args:
      sketch: the shapes of a run.
      data: of the run, where it is on this machine; texts without it are of the largest length.
    """
    tuned, engine = sketch.tuned, sketch.experiment.engine
    clients = num_together(sketch.experiment)
    workers = engine.workers or 1
    shapes = [tuple(parameter.shape) for parameter in tuned.parameters.values()]
    batch = _batch(sketch, data, sketch.experiment.client.batch_size)
    found = None if batch is None else _activations(sketch, batch)
    return Memory(
        weights=num_bytes(tuned.model),
        activations=None if found is None else workers * clients * found,
        delta=(workers * clients * 4 + 5) * tuned.spec.num_bytes,
        optimizer=workers * clients * state_bytes(sketch.experiment.client.optimizer, shapes),
    )


def _batch(sketch: Sketch, data: Federated | None, size: int) -> Batch | None:
    """Return a batch of the longest examples; None where the data is not here, nor texts."""
    if data is not None:
        rows = np.arange(len(data.train))
        lengths = lengths_of(ClientData(data.train, rows))
        order = rows if lengths is None else np.argsort(-lengths, kind="stable")
        largest = max((len(indices) for indices in data.clients.values()), default=0)
        return data.train.batch(order[: min(size, largest)].tolist(), seed=None)
    length = sketch.experiment.data.max_length
    if not isinstance(sketch.tuned.loaded.inputs, TextInput) or not length:
        return None
    ids_BT = torch.ones((size, length), dtype=torch.long)
    targets = blank_labels(sketch.tuned.loaded.task, ids_BT, _outputs(sketch))
    return {"input_ids": ids_BT, "attention_mask": ids_BT, "labels": targets}


def _outputs(sketch: Sketch) -> int:
    return int(getattr(getattr(sketch.tuned.loaded.module, "config", None), "num_labels", 1))


def _activations(sketch: Sketch, batch: Batch) -> int | None:
    """Return the most bytes that a step or an evaluation holds; None if it cannot be found."""
    tuned = sketch.tuned
    settings = replace(local_settings(sketch.resolved), device="cpu")  # where the shapes are
    score = tuned.loaded.task.score
    size = len(batch["labels"])
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    try:
        with _on_cpu(tuned.model, mode), mode:
            held = {n: torch.empty_like(v, device="cpu") for n, v in batch.items()}
            own = [*tuned.model.parameters(), *tuned.model.buffers(), *held.values()]
            trained = [p for p in tuned.model.parameters() if p.requires_grad]
            with _Live(own) as step, tuned.dropout.using(torch.arange(size)):
                with autocast(settings), checkpointed(tuned.model, on=settings.checkpointing):
                    loss = mean_loss(score(tuned.model, held))
                torch.autograd.grad(loss, trained, allow_unused=True)
                del loss
            rows = size if tuned.loaded.task.per_token else _EVALUATED
            many = {n: v.new_empty((rows, *v.shape[1:])) for n, v in held.items()}
            with _Live([*own, *many.values()]) as judged, torch.no_grad(), autocast(settings):
                score(tuned.model, many)
    except (RuntimeError, NotImplementedError, TypeError, ValueError, AttributeError) as error:
        logger.info("activations cannot be counted without training: %s", error)
        return None
    found: int = max(step.peak, judged.peak)
    return found


@contextlib.contextmanager
def _on_cpu(module: nn.Module, mode: FakeTensorMode) -> Iterator[None]:
    """Replace parameters and buffers on `meta` by ones that say they are on the CPU, within."""
    made: dict[int, Tensor] = {}
    before: list[tuple[dict[str, Any], str, Tensor]] = [
        (table, name, value)
        for part in module.modules()
        for table in (part._parameters, part._buffers)
        for name, value in table.items()
        if value is not None
    ]
    with mode:
        for table, name, value in before:
            if id(value) not in made:
                fake = torch.empty(value.shape, dtype=value.dtype, device="cpu")
                parameter = isinstance(value, nn.Parameter)
                made[id(value)] = nn.Parameter(fake, value.requires_grad) if parameter else fake
            table[name] = made[id(value)]
    try:
        yield
    finally:
        for table, name, value in before:
            table[name] = value


class _Live(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch has no types here
    """Counts the bytes of tensors that operations made and that still live.

    Args:
      own: tensors that were there before, and views of them, are not counted.
    """

    def __init__(self, own: Sequence[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._own = {tensor.untyped_storage()._cdata for tensor in own}
        self._held: dict[int, tuple[Any, int]] = {}
        self._watch: Callable[..., Any] = StorageWeakRef
        self.peak: int = 0

    def __torch_dispatch__(
        self,
        func: Callable[..., object],
        types: Sequence[type],
        args: Sequence[object] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        """Run an operation, and count."""
        found = func(*args, **(kwargs or {}))
        for value in tree_leaves(found):
            if isinstance(value, Tensor):
                storage = value.untyped_storage()
                if storage._cdata not in self._own:
                    self._held[storage._cdata] = (self._watch(storage), storage.nbytes())
        self._held = {key: one for key, one in self._held.items() if not one[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self._held.values()))
        return found
