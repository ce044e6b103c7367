"""A contestant's work, read from a folder: model, data, cohorts and every batch, in order.

    model/            an ordinary Hugging Face folder
    start.safetensors the trained parameters before round 1, by their paths in the model
    examples.npz      train_* and test_* arrays, as the model takes them
    work.json         method, optimiser, cohorts, and the rows of every batch of every turn

Nothing of fedpeft is imported here: this is what a contestant of another system starts from.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

__all__ = [
    "Work",
    "accuracy",
    "batch_of",
    "delta_of",
    "make_model",
    "make_optimizer",
    "plain_path",
    "read_work",
    "save_delta",
    "set_delta",
    "train",
]


@dataclass(frozen=True)
class Work:
    """What a folder holds.

    Attributes:
      folder: where it is.
      plan: work.json.
      train: arrays of all training examples by the names of the model's arguments.
      test: the same of the test examples.
      start: the trained parameters before round 1.
    """

    folder: Path
    plan: Mapping[str, Any]
    train: Mapping[str, Tensor]
    test: Mapping[str, Tensor]
    start: Mapping[str, Tensor]

    def cohort(self, number: int) -> list[str]:
        """Return the clients of a round, counted from 1."""
        return list(self.plan["cohorts"][number - 1])

    def steps(self, number: int, client: str) -> Iterator[list[int]]:
        """Yield the rows of each batch of a client's turn."""
        for epoch in self.plan["turns"][f"{number}/{client}"]:
            yield from epoch


def read_work(folder: Path) -> Work:
    """Read a folder."""
    plan = json.loads((folder / "work.json").read_text("utf-8"))
    with np.load(folder / "examples.npz", allow_pickle=False) as arrays:
        tensors = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    train = {name[6:]: value for name, value in tensors.items() if name.startswith("train_")}
    test = {name[5:]: value for name, value in tensors.items() if name.startswith("test_")}
    return Work(folder, plan, train, test, load_file(folder / "start.safetensors"))


def make_model(work: Work) -> nn.Module:
    """Load the model and give it what its tuning method trains; the delta is the starting one."""
    from transformers import AutoModelForImageClassification, AutoModelForSequenceClassification

    kinds = {
        "image-classification": AutoModelForImageClassification,
        "text-classification": AutoModelForSequenceClassification,
    }
    base = kinds[work.plan["task"]].from_pretrained(work.folder / "model", local_files_only=True)
    model = _SURGERIES[work.plan["method"]](work, base)
    set_delta(model, work.start)
    return model


def make_optimizer(work: Work, model: nn.Module) -> torch.optim.Optimizer:
    """Return a fresh optimiser of what the model trains."""
    wanted = dict(work.plan["optimizer"])
    kind = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}[wanted.pop("name")]
    return cast(torch.optim.Optimizer, kind(_trained(model), **wanted))


def batch_of(examples: Mapping[str, Tensor], rows: Sequence[int]) -> dict[str, Tensor]:
    """Return a batch; texts are cut to the longest one in it."""
    index = torch.as_tensor(rows)
    batch = {name: value[index] for name, value in examples.items()}
    if "attention_mask" in batch:
        longest = int(batch["attention_mask"].sum(dim=1).max())
        batch = {n: v[:, :longest] if v.ndim == 2 else v for n, v in batch.items()}
    return batch


def train(work: Work, model: nn.Module, number: int, client: str) -> float:
    """Take a client's turn in a round, and return the last batch's loss."""
    optimizer = make_optimizer(work, model)
    model.train()
    loss = torch.zeros(())
    for rows in work.steps(number, client):
        optimizer.zero_grad()
        loss = model(**batch_of(work.train, rows)).loss
        loss.backward()
        optimizer.step()
    return float(loss.detach())


def accuracy(work: Work, model: nn.Module, batch_size: int = 256) -> float:
    """Return the share of right predictions on the test examples."""
    model.eval()
    right = count = 0
    with torch.inference_mode():
        total = len(work.test["labels"])
        for start in range(0, total, batch_size):
            batch = batch_of(work.test, range(start, min(start + batch_size, total)))
            labels = batch.pop("labels")
            right += int((model(**batch).logits.argmax(dim=-1) == labels).sum())
            count += len(labels)
    return right / count


def delta_of(model: nn.Module) -> dict[str, Tensor]:
    """Return what the model trains, by path; the tensors are the live ones."""
    return {plain_path(n): p.data for n, p in model.named_parameters() if p.requires_grad}


def set_delta(model: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Write what the model trains.

    Raises:
      ValueError: if the names are not exactly those of the trained parameters.
    """
    live = delta_of(model)
    if live.keys() != values.keys():
        wrong = sorted(live.keys() ^ values.keys())
        raise ValueError(f"trained parameters differ from the work's, first: {wrong[:3]}")
    for name, tensor in live.items():
        tensor.copy_(values[name])


def save_delta(values: Mapping[str, Tensor], file: Path) -> None:
    """Write named tensors to a file."""
    save_file({n: v.detach().clone().contiguous() for n, v in values.items()}, file)


def plain_path(name: str) -> str:
    """Return a parameter's path without what a peft wrapper puts around it."""
    bare = name.removeprefix("base_model.model.")
    return bare.replace(".modules_to_save.default", "").replace(".default.", ".")


def _trained(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def _lora(work: Work, base: nn.Module) -> nn.Module:
    from peft import LoraConfig, get_peft_model

    return cast(nn.Module, get_peft_model(base, LoraConfig(**work.plan["lora"])))


def _bias(work: Work, base: nn.Module) -> nn.Module:
    for name, parameter in base.named_parameters():
        parameter.requires_grad_("bias" in name or name.startswith("classifier."))
    return base


def _adapter(work: Work, base: nn.Module) -> nn.Module:
    """One bottleneck after every block's MLP, with a forward hook: the peft library has none."""
    base.requires_grad_(False)
    width, inner = work.plan["width"], work.plan["inner"]
    bottleneck = nn.Sequential()
    bottleneck.add_module("down", nn.Linear(width, inner))
    bottleneck.add_module("gelu", nn.GELU())
    bottleneck.add_module("up", nn.Linear(inner, width))
    for path in work.plan["sites"]:
        base.get_submodule(path).register_forward_hook(lambda m, i, out: out + bottleneck(out))
    base.add_module(work.plan["adapter_root"], bottleneck)
    for name, parameter in base.named_parameters():
        if name.startswith("classifier."):
            parameter.requires_grad_(True)
    return base


_SURGERIES = {"lora": _lora, "bias": _bias, "adapter": _adapter}
