"""Features of a frozen backbone: what its head would get, for each example of a set.

    picture ── backbone ──> [CLS, patches ...] ── final norm ──> CLS ──> (head)
                                                                  └──> feature

For a ViT or DeiT that is the CLS token after the final norm; for DINOv2 the CLS token beside the
mean of the patches; for networks with pooling (ShuffleNet, Swin) the pooled map; for BERT and its
kin the CLS token before the pooler; for decoders the last token that is not padding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedpeft.core import seeds
from fedpeft.core.errors import ConfigError
from fedpeft.data.examples import ExampleSet
from fedpeft.data.load import load_data
from fedpeft.data.request import DataRequest, TransformSpec
from fedpeft.data.schemes import PartitionRequest
from fedpeft.models.loaded import LoadedModel
from fedpeft.models.source import ModelRequest, load_model
from fedpeft.models.tasks import Batch

__all__ = ["GapRequest", "features_of", "read_features"]

_BATCH = 256


@dataclass(frozen=True)
class GapRequest:
    """What to compare.

    Attributes:
      model: as in `model.name`.
      sources: set -> data source, as in `data.source`.
      split: `test` or `train`.
      normalize: of pictures: `model` or `dataset`.
      sample: at most so many examples of a set, drawn from the seed; None is all.
      seed: draws samples.
    """

    model: str
    sources: Mapping[str, str]
    split: str = "test"
    normalize: str = "model"
    sample: int | None = None
    seed: int = 1


def read_features(request: GapRequest) -> dict[str, NDArray[np.float64]]:
    """Load the model and every set, and compute the features.

    Returns:
      set -> [N, D].

    Raises:
      ConfigError: if the model or a set cannot be loaded, or an option is wrong.
    """
    for key, found, allowed in (
        ("--split", request.split, ("test", "train")),
        ("--normalize", request.normalize, ("model", "dataset")),
    ):
        if found not in allowed:
            raise ConfigError(f"gap: {key}: found {found!r}; allowed are {', '.join(allowed)}")
    loaded = load_model(ModelRequest(request.model, seed=request.seed))
    return {name: _set_features(loaded, name, request) for name in request.sources}


def features_of(
    loaded: LoadedModel, examples: ExampleSet, rows: Sequence[int]
) -> NDArray[np.float64]:
    """Compute the features of some examples.

    Args:
      loaded: in eval mode.
      examples: a set; never augmented.
      rows: which of its examples.

    Returns:
      float64 [N, D].
    """
    path, pooled = _place(loaded)
    parts: list[NDArray[np.float64]] = []
    caught: list[Tensor] = []

    def catch(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        caught.append(args[0].detach())

    handle = loaded.module.get_submodule(path).register_forward_pre_hook(catch)
    try:
        with torch.inference_mode():
            for start in range(0, len(rows), _BATCH):
                batch = examples.batch(rows[start : start + _BATCH], seed=None)
                loaded.module(**{key: x for key, x in batch.items() if key != "labels"})
                feature_BD = _one_token(caught.pop(), batch, first=pooled)
                parts.append(feature_BD.double().cpu().numpy())
    finally:
        handle.remove()
    return np.concatenate(parts)


def _place(loaded: LoadedModel) -> tuple[str, bool]:
    """Name the module whose input is the feature, and say whether its first token counts."""
    paths = {path for path, _ in loaded.module.named_modules()}
    late = [path for path in loaded.family.late_head if path in paths]
    return (late[0], True) if late else (loaded.head[0], False)


def _one_token(x: Tensor, batch: Batch, *, first: bool) -> Tensor:
    """Reduce [B, T, D] to [B, D]; what has no token axis is returned, flattened."""
    if x.ndim != 3:
        return x.flatten(1)
    if first or "attention_mask" not in batch:
        return x[:, 0]
    last_B = batch["attention_mask"].cumsum(1).argmax(1)
    return x[torch.arange(len(x)), last_B]


def _set_features(loaded: LoadedModel, name: str, request: GapRequest) -> NDArray[np.float64]:
    data = load_data(
        DataRequest(
            source=request.sources[name],
            task=loaded.task.name,
            seed=request.seed,
            partition=PartitionRequest(scheme="iid", clients=1, min_examples=1),
            transforms=TransformSpec(normalize=request.normalize),
        ),
        loaded.inputs,
    )
    examples = data.test if request.split == "test" else data.train
    rows = np.arange(len(examples))
    if request.sample is not None and request.sample < len(rows):
        rng = np.random.default_rng(seeds.derive(request.seed, "gap", "sample", name))
        rows = np.sort(rng.choice(len(rows), request.sample, replace=False))
    return features_of(loaded, examples, rows.tolist())
