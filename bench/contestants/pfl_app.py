"""Apple's `pfl` with a Hugging Face `peft` model, as a user of its PyTorch interface writes it.

FederatedAveraging, a PyTorchModel around the network, data sets by user, a central SGD of rate 1,
evaluation of the whole test set after each iteration. Sampler and data sets dictate cohorts and
batches, so that all contestants meet the same ones.
Several processes: started by torchrun, as pfl's documentation says.

Usage: python -m bench.contestants.pfl_app FOLDER OUT.json
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import cast

import numpy as np
import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.aggregate.weighting import WeightByDatapoints
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.callback.central_evaluation import CentralEvaluationCallback
from pfl.data.dataset import Dataset
from pfl.data.federated_dataset import FederatedDataset
from pfl.hyperparam import NNEvalHyperParams, NNTrainHyperParams
from pfl.metrics import Metrics, Weighted
from pfl.model.pytorch import PyTorchModel
from torch import Tensor, nn

from bench.contestants.work import Work, delta_of, make_model, read_work, save_delta

__all__ = ["main"]


class Classifier(nn.Module):
    """The network with the two methods that pfl asks for."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def loss(self, pixel_values: Tensor, labels: Tensor) -> Tensor:
        """Return the mean loss of a batch."""
        self.net.train()
        return cast(Tensor, self.net(pixel_values=pixel_values, labels=labels).loss)

    @torch.no_grad()
    def metrics(self, pixel_values: Tensor, labels: Tensor) -> dict[str, Weighted]:
        """Return the share of right predictions."""
        self.net.eval()
        guess = self.net(pixel_values=pixel_values).logits.argmax(dim=-1)
        return {"accuracy": Weighted(int((guess == labels).sum()), len(labels))}


class Clock(TrainingProcessCallback):  # type: ignore[misc]  # pfl is not typed for mypy here
    """Notes when each iteration ended and what the central evaluation said."""

    def __init__(self) -> None:
        self.stamps: list[float] = []
        self.score = float("nan")

    def on_train_begin(self, *, model: PyTorchModel) -> Metrics:
        """Note the beginning."""
        self.stamps.append(time.perf_counter())
        return Metrics()

    def after_central_iteration(
        self, aggregate_metrics: Metrics, model: PyTorchModel, *, central_iteration: int
    ) -> tuple[bool, Metrics]:
        """Note the end of an iteration."""
        self.stamps.append(time.perf_counter())
        found = aggregate_metrics.to_simple_dict()
        self.score = float(found.get("Central val | accuracy", self.score))
        return False, Metrics()


class DictatedDataset(Dataset):  # type: ignore[misc]  # pfl is not typed for mypy here
    """A user's data set whose epochs bring the batches that the work has for the turn."""

    def __init__(self, work: Work, turn: str) -> None:
        rows = work.plan["clients"][turn.split("/")[1]]
        index = torch.as_tensor(rows)
        data = [work.train["pixel_values"][index], work.train["labels"][index]]
        super().__init__(data, user_id=turn)
        place = {row: number for number, row in enumerate(rows)}
        epochs = work.plan["turns"][turn]
        self._size = work.plan["batch_size"]
        self._epochs = iter([[[place[row] for row in b] for b in epoch] for epoch in epochs])

    def iter(self, batch_size: int | None) -> Iterator[list[Tensor]]:
        """Yield the batches of the next epoch; in evaluation, which asks for other sizes, all."""
        if batch_size != self._size:
            yield from super().iter(batch_size)
            return
        for places in next(self._epochs):
            yield [tensor[places] for tensor in self.raw_data]


def _federated(work: Work) -> FederatedDataset:
    turns = [f"{r}/{name}" for r, names in enumerate(work.plan["cohorts"], 1) for name in names]
    weights = {turn: work.plan["sizes"][turn.split("/")[1]] for turn in turns}
    order = itertools.cycle(turns)
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    return FederatedDataset(
        lambda turn: DictatedDataset(work, turn), lambda: next(order), weights if several else None
    )


def _optimizer_maker(work: Work) -> Callable[..., torch.optim.Optimizer]:
    kept = {key: value for key, value in work.plan["optimizer"].items() if key != "name"}

    def make(parameters: Iterable[nn.Parameter], lr: float) -> torch.optim.Optimizer:
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        return torch.optim.SGD(trained, **{**kept, "lr": lr})

    return make


def main() -> None:
    """Run the simulation."""
    np.random.seed(0)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    work, out = read_work(Path(sys.argv[1])), Path(sys.argv[2])
    net = make_model(work)
    trained = [p for p in net.parameters() if p.requires_grad]
    model = PyTorchModel(Classifier(net), _optimizer_maker(work), torch.optim.SGD(trained, lr=1.0))
    clock = Clock()
    test = Dataset([work.test["pixel_values"], work.test["labels"]])
    evaluation = NNEvalHyperParams(local_batch_size=256)
    began = time.perf_counter()
    FederatedAveraging().run(
        backend=SimulatedBackend(_federated(work), None, postprocessors=[WeightByDatapoints()]),
        model=model,
        algorithm_params=NNAlgorithmParams(
            central_num_iterations=work.plan["rounds"],
            evaluation_frequency=10**6,
            train_cohort_size=len(work.cohort(1)),
            val_cohort_size=None,
        ),
        model_train_params=NNTrainHyperParams(
            local_num_epochs=work.plan["epochs"],
            local_learning_rate=work.plan["optimizer"]["lr"],
            local_batch_size=work.plan["batch_size"],
        ),
        model_eval_params=evaluation,
        callbacks=[CentralEvaluationCallback(test, model_eval_params=evaluation), clock],
    )
    seconds = [after - before for before, after in itertools.pairwise(clock.stamps)]
    if int(os.environ.get("RANK", "0")) == 0:
        save_delta(delta_of(net), out.with_suffix(".safetensors"))
        found = {"accuracy": clock.score, "round_seconds": seconds}
        out.write_text(json.dumps(found | {"rounds": time.perf_counter() - began}), "utf-8")


if __name__ == "__main__":
    main()
