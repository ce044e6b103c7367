"""Features of a frozen backbone: the input of its head, for each example of a set.

    picture ── backbone ──> [CLS, patches ...] ── final norm ──> CLS ──> (head)
                                                                  └──> feature

For a ViT or DeiT that is the CLS token after the final norm; for DINOv2 the CLS token beside the
mean of the patches; for networks with pooling (ResNet, ConvNeXt, ShuffleNet, Swin) the pooled map;
for BERT-like encoders the CLS token before the pooler; for decoders the last token that is not
padding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedpeft.core import seeds
from fedpeft.core.errors import ConfigError, ModelError
from fedpeft.data.examples import ExampleSet
from fedpeft.data.load import load_data
from fedpeft.data.request import DataRequest, TransformSpec
from fedpeft.data.schemes import PartitionRequest
from fedpeft.models.loaded import LoadedModel
from fedpeft.models.source import ModelRequest, load_model
from fedpeft.models.tasks import Batch

__all__ = ["SPLITS", "GapRequest", "check_option", "features_of", "read_features", "sample_of"]

_BATCH = 256
SPLITS = ("test", "train")
"""The splits of a data set that features can be computed of."""
_DECODER_HEADS = ("score", "lm_head")


@dataclass(frozen=True)
class GapRequest:
    """The model and the data sets of an analysis.

    Attributes:
      model: as in `model.name`.
      sources: set -> data source, as in `data.source`; `SOURCE@train` and `SOURCE@test` choose the
        split.
      split: `test` or `train`, for sources that name no split.
      normalize: how pictures are normalised: `model` or `dataset`.
      sample: largest number of examples of a set, drawn at random; None takes all.
      seed: seed of the samples.
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
      Set -> features [N, D].

    Raises:
      ConfigError: if the model or a set cannot be loaded, or an option is wrong.
    """
    check_option("--split", request.split, SPLITS)
    check_option("--normalize", request.normalize, ("model", "dataset"))
    loaded = load_model(ModelRequest(request.model, seed=request.seed))
    return {name: _set_features(loaded, name, request) for name in request.sources}


def check_option(option: str, found: str, allowed: Sequence[str]) -> None:
    """Check the value of an option of `fedpeft gap`.

    Raises:
      ConfigError: if the value is not allowed.
    """
    if found not in allowed:
        raise ConfigError(f"gap: {option}: found {found!r}; allowed are {', '.join(allowed)}")


def features_of(
    loaded: LoadedModel, examples: ExampleSet, rows: Sequence[int]
) -> NDArray[np.float64]:
    """Compute the features of some examples.

    Args:
      loaded: in eval mode.
      examples: a set; never augmented.
      rows: the rows of its examples.

    Returns:
      Features, float64 [N, D].

    Raises:
      ModelError: if the head is not known or not called, or its input is not pooled.
    """
    path, first = _place(loaded)
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
                if not caught:
                    raise ModelError(_no_feature(loaded, f"{path!r} is not called"))
                feature_BD = _one_token(caught.pop(), batch, first=first)
                if feature_BD is None:
                    raise ModelError(_no_feature(loaded, f"{path!r} gets a map of places"))
                parts.append(feature_BD.double().cpu().numpy())
    finally:
        handle.remove()
    return np.concatenate(parts)


def _place(loaded: LoadedModel) -> tuple[str, bool]:
    """Return the path of the module whose input is the feature, and whether it reads token 0.

    Decoders end in `score` or `lm_head`, which read the last token; `classifier` reads the first.
    """
    paths = {path for path, _ in loaded.module.named_modules()}
    late = [path for path in loaded.family.late_head if path in paths]
    if not late and not loaded.head:
        raise ModelError(_no_feature(loaded, "it has none"))
    path = (*late, *loaded.head)[0]
    return path, path not in _DECODER_HEADS


def _one_token(x: Tensor, batch: Batch, *, first: bool) -> Tensor | None:
    """Reduce [B, T, D] to [B, D] and [B, D, 1, 1] to [B, D]; None for a map that is not pooled."""
    if x.ndim != 3:
        return x.flatten(1) if x.shape[2:].numel() == 1 else None
    if first:
        return x[:, 0]
    if "attention_mask" not in batch:
        return x[:, -1]
    last_B = batch["attention_mask"].cumsum(1).argmax(1)
    return x[torch.arange(len(x)), last_B]


def _no_feature(loaded: LoadedModel, found: str) -> str:
    return (
        f"gap: features are the input of a model's head; of {loaded.source!r} {found}. Use a model "
        "whose head is one module with pooled features or tokens as its input"
    )


def _set_features(loaded: LoadedModel, name: str, request: GapRequest) -> NDArray[np.float64]:
    source, split = _source_of(request, name)
    data = load_data(
        DataRequest(
            source=source,
            task=loaded.task,
            seed=request.seed,
            partition=PartitionRequest(scheme="iid", clients=1, min_examples=1),
            transforms=TransformSpec(normalize=request.normalize),
        ),
        loaded.inputs,
    )
    examples = data.test if split == "test" else data.train
    rows = sample_of(
        len(examples), request.sample, seeds.derive(request.seed, "gap", "sample", name)
    )
    return features_of(loaded, examples, rows)


def _source_of(request: GapRequest, name: str) -> tuple[str, str]:
    """Return a set's source and split."""
    source, sign, split = request.sources[name].rpartition("@")
    if sign and split in SPLITS:
        return source, split
    return request.sources[name], request.split


def sample_of(count: int, size: int | None, seed: int) -> list[int]:
    """Draw `size` of `count` rows, in ascending order; all rows if `size` is None or too large."""
    if size is None or size >= count:
        return list(range(count))
    drawn = np.random.default_rng(seed).choice(count, size, replace=False)
    return [int(row) for row in np.sort(drawn)]
