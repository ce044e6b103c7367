"""Features of a frozen backbone: the input of its head, for each example of a set.

    picture ── backbone ──> [CLS, patches ...] ── final norm ──> CLS ──> (head)
                                                                  └──> feature

    sets of one backbone    each set through the pretrained model, label = set
    runs on one test set    the same examples through each run's own tuned model, label = run

For a ViT or DeiT that is the CLS token after the final norm; for DINOv2 the CLS token beside the
mean of the patches; for networks with pooling (ResNet, ConvNeXt, ShuffleNet, Swin) the pooled map;
for BERT-like encoders the CLS token before the pooler; for decoders the last token that is not
padding. Runs of one backbone on one data set can be compared; the distances show how differently
tuning methods have changed the input of the head. Head-tuning leaves the backbone's own features.

Reference: Fig. 4 of Sun et al., Exploring Parameter-Efficient Fine-Tuning to Enable Foundation
Models in Federated Learning, IEEE BigData 2024; the procedure for runs is our reading of their
code.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from fedpeft.build.model import load_run_data
from fedpeft.core import seeds
from fedpeft.core.errors import ConfigError, ModelError
from fedpeft.core.text import home
from fedpeft.data.examples import ExampleSet
from fedpeft.data.load import load_data
from fedpeft.data.request import DataRequest, TransformSpec
from fedpeft.data.schemes import PartitionRequest
from fedpeft.experiment.experiment import Experiment
from fedpeft.experiment.resolve import Resolved
from fedpeft.models.families import before_head
from fedpeft.models.loaded import LoadedModel
from fedpeft.models.source import ModelRequest, load_model
from fedpeft.models.tasks import Batch
from fedpeft.runs.folder import RunFolder, stored_experiment
from fedpeft.runs.load import load_run
from fedpeft.studies.gap.measures import Array, sample_of

_BATCH = 256
_SPLITS = ("test", "train")
_DECODER_HEADS = ("score", "lm_head")
_FREE = {"partition", "budget", "num_examples"}
"""Keys of `[data]` that do not change the test examples."""


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


@dataclass(frozen=True)
class RunsRequest:
    """The runs of an analysis.

    Attributes:
      runs: label -> run folder.
      split: `test` or `train`.
      sample: largest number of examples, the same for every run; None takes all.
      seed: seed of the sample.
    """

    runs: Mapping[str, Path]
    split: str = "test"
    sample: int | None = None
    seed: int = 1


@dataclass(frozen=True)
class RunFeatures:
    """Features of the same examples in several runs.

    Attributes:
      rows: label -> features [N, D].
      methods: label -> tuning method.
      model: as in `model.name`.
      source: as in `data.source`.
    """

    rows: Mapping[str, Array]
    methods: Mapping[str, str]
    model: str
    source: str


def read_features(request: GapRequest) -> dict[str, Array]:
    """Load the model and every set, and compute the features.

    Returns:
      Set -> features [N, D].

    Raises:
      ConfigError: if the model or a set cannot be loaded, or an option is wrong.
    """
    _check_option("--split", request.split, _SPLITS)
    _check_option("--normalize", request.normalize, ("model", "dataset"))
    loaded = load_model(ModelRequest(request.model, seed=request.seed))
    return {name: _set_features(loaded, name, request) for name in request.sources}


def label_runs(texts: Sequence[str]) -> dict[str, Path]:
    """Read `[NAME=]DIR`; an unnamed run takes its folder's name.

    Raises:
      ConfigError: if two runs would have one label.
    """
    runs: dict[str, Path] = {}
    for text in texts:
        name, sign, folder = text.partition("=")
        named = bool(sign) and not home(text).exists()
        label, path = (name, home(folder)) if named else (Path(text).name, home(text))
        label = label or path.resolve().name
        if label in runs:
            raise ConfigError(
                f"gap: two runs are called {label!r} ({runs[label]} and {path}); "
                "give one of them a name: NAME=DIR"
            )
        runs[label] = path
    return runs


def read_run_features(request: RunsRequest) -> RunFeatures:
    """Load every run's final model and compute the features of the runs' common examples.

    Raises:
      ConfigError: if an option is wrong, or the runs differ in model or data.
      RunFolderError: if a folder is not a finished run.
    """
    _check_option("--split", request.split, _SPLITS)
    if not request.runs:
        raise ConfigError("gap: found no runs; name three run folders or more")
    experiments = {
        label: stored_experiment(RunFolder(folder)) for label, folder in request.runs.items()
    }
    named, first = next(iter(experiments.items()))
    for label, experiment in experiments.items():
        _check_alike((named, first), (label, experiment))
    data = load_run_data(Resolved(first))
    examples = data.test if request.split == "test" else data.train
    rows = sample_of(len(examples), request.sample, seeds.derive(request.seed, "gap", "sample"))
    features = {}
    for label, folder in request.runs.items():
        tuned = load_run(folder).tuned
        loaded = dataclasses.replace(tuned.loaded, module=tuned.model.eval())
        features[label] = features_of(loaded, examples, rows)
    methods = {label: experiment.tuning.method for label, experiment in experiments.items()}
    return RunFeatures(features, methods, first.model.name, first.data.source)


def features_of(loaded: LoadedModel, examples: ExampleSet, rows: Sequence[int]) -> Array:
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
    parts: list[Array] = []
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
    late = before_head(loaded.module, loaded.head)
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


def _set_features(loaded: LoadedModel, name: str, request: GapRequest) -> Array:
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
    if sign and split in _SPLITS:
        return source, split
    return request.sources[name], request.split


def _check_option(option: str, found: str, allowed: Sequence[str]) -> None:
    if found not in allowed:
        raise ConfigError(f"gap: {option}: found {found!r}; allowed are {', '.join(allowed)}")


def _check_alike(first: tuple[str, Experiment], other: tuple[str, Experiment]) -> None:
    """Compare the settings that decide the examples and the width of the features."""
    parts = [
        {"model.name": experiment.model.name, **experiment.data.model_dump(exclude=_FREE)}
        for _, experiment in (first, other)
    ]
    for key, value in parts[0].items():
        if parts[1][key] != value:
            where = key if "." in key else f"data.{key}"
            raise ConfigError(
                f"gap: runs can be compared on one backbone and the same examples only: {where} "
                f"is {value!r} in {first[0]!r} and {parts[1][key]!r} in {other[0]!r}; "
                "leave one of them out"
            )
