"""The cost of training and evaluation: nothing is computed or decoded in vain."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedpeft.client.evaluate import evaluate
from fedpeft.client.local import local_trainer
from fedpeft.client.settings import LocalSettings
from fedpeft.client.turns import DELTA, ClientTurn
from fedpeft.data import images as pictures
from fedpeft.data.examples import ClientData
from fedpeft.data.load import load_data
from fedpeft.data.request import DataRequest
from fedpeft.data.schemes import PartitionRequest
from fedpeft.models.loaded import ImageInput
from fedpeft.models.source import ModelRequest, load_model
from fedpeft.tuning.methods import TuningRequest, tune
from fedpeft.tuning.tuned import TunedModel, read_delta


class Pictures:
    """Random images of 8 x 8 pixels and ten classes; records the size of each requested batch."""

    def __init__(self, count: int) -> None:
        self.count, self.sizes = count, list[int]()

    def __len__(self) -> int:
        return self.count

    def batch(self, indices: Sequence[int], *, seed: int | None) -> dict[str, Tensor]:
        self.sizes.append(len(indices))
        pixels = torch.randn(len(indices), 1, 8, 8, generator=torch.Generator().manual_seed(1))
        return {"pixel_values": pixels, "labels": torch.as_tensor(list(indices)) % 10}


def tuned(method: str, blocks: tuple[int, int] | None = None) -> TunedModel:
    loaded = load_model(ModelRequest("preset:tiny-vit", num_labels=10, data_channels=1))
    return tune(loaded, TuningRequest(method, blocks=blocks))


def train(model: TunedModel) -> None:
    trainer = local_trainer(model, LocalSettings(epochs=1, batch_size=4))
    turn = ClientTurn(1, "c", ClientData(Pictures(8), np.arange(8)), {}, 1, 0)
    list(trainer({DELTA: read_delta(model)}, [turn]))


def in_graph(model: TunedModel) -> list[str]:
    """Train a turn; return the modules whose output took part in the backward pass."""
    found: list[str] = []

    def noting(name: str) -> Callable[[nn.Module, object, object], None]:
        def note(module: nn.Module, inputs: object, output: object) -> None:
            first = output[0] if isinstance(output, tuple) else output
            if isinstance(first, Tensor) and first.requires_grad:
                found.append(name)

        return note

    for name, module in model.model.named_modules():
        module.register_forward_hook(noting(name))
    train(model)
    return found


@pytest.mark.parametrize("method", ["head", "bias", "adapter", "prompt", "lora"])
def test_frozen_weights_get_no_gradient(method: str) -> None:
    model = tuned(method)
    train(model)
    for parameter in model.model.parameters():
        assert (parameter.grad is not None) == parameter.requires_grad


@pytest.mark.parametrize(
    ("method", "blocks", "free"),
    [
        ("head", None, ("embeddings", "layers.0", "layers.1")),
        ("lora", None, ("embeddings",)),
        ("prompt", None, ("embeddings",)),
        ("bias", (1, 1), ("embeddings", "layers.0")),
        ("lora", (1, 1), ("embeddings", "layers.0")),
        ("prompt", (1, 1), ("embeddings", "layers.0")),
    ],
)
def test_nothing_runs_backward_below_the_first_trained_parameter(
    method: str, blocks: tuple[int, int] | None, free: tuple[str, ...]
) -> None:
    found = in_graph(tuned(method, blocks))
    assert found and not [name for name in found if any(part in name for part in free)]


def test_a_trained_embedding_runs_backward() -> None:
    """The negative control: the test above would detect it."""
    assert any("embeddings" in name for name in in_graph(tuned("full")))


def test_a_trainer_walks_the_modules_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, calls = tuned("bias"), []
    monkeypatch.setattr(type(model.model), "train", lambda self, mode=True: calls.append(mode))
    train(model)
    assert len(calls) <= 1


def test_pictures_are_decoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[int] = []
    right = pictures._to_array

    def counting(picture: object, row: int) -> object:
        decoded.append(row)
        return right(picture, row)

    monkeypatch.setattr(pictures, "_to_array", counting)
    parts = PartitionRequest(clients=4, alpha=1.0, min_examples=1)
    data = load_data(DataRequest(partition=parts), ImageInput(8, 8, 1, (0.5,), (0.5,), 1 / 16))
    once = len(data.train) + len(data.test) + 2  # the first of each split tells the sizes
    assert len(decoded) == once
    for seed in (1, 2, None):
        data.train.batch(range(100), seed=seed)
    assert len(decoded) == once


def test_evaluation_takes_large_batches_and_keeps_no_graph() -> None:
    model, examples, modes = tuned("full"), Pictures(600), list[bool]()
    model.model.register_forward_hook(lambda *_: modes.append(torch.is_inference_mode_enabled()))
    found = evaluate(model, examples, LocalSettings(), 256)
    assert examples.sizes == [256, 256, 88] and modes == [True] * 3
    assert not found.loss_N.requires_grad and len(found.loss_N) == 600


def test_help_imports_neither_torch_nor_transformers() -> None:
    code = (
        "import sys; from fedpeft.cli.app import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "print(sorted({'torch', 'transformers', 'peft', 'datasets'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]", done.stdout[-400:]
