"""Loading: a run folder or an export of any method becomes a model in eval mode.

    run folder    experiment.toml + delta.safetensors              pretrained model + delta
    export        fedpeft.json + (model | base/ + delta.safetensors)

The delta's digest, and an export's backbone fingerprint, are compared with the recorded ones.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from fedpeft.build.model import build_tuned, tuning_request
from fedpeft.core.deltas import digest_of
from fedpeft.core.errors import DeltaMismatchError, RunFolderError
from fedpeft.core.text import home
from fedpeft.data.preprocessing import Preprocessing, preprocessing_from
from fedpeft.experiment.experiment import Experiment, TuningConfig
from fedpeft.experiment.resolve import Resolved
from fedpeft.experiment.starting import find_adapter
from fedpeft.models.families import canonical_names
from fedpeft.models.fingerprint import fingerprint
from fedpeft.models.heads import name_classes
from fedpeft.models.loaded import LoadedModel
from fedpeft.models.source import ModelRequest, load_model
from fedpeft.models.storage import FLOAT32
from fedpeft.models.stored import settle, unstore
from fedpeft.runs.checkpoint import checkpoints, read_checkpoint
from fedpeft.runs.files import read_object
from fedpeft.runs.folder import RunFolder, read_summary, stored_experiment
from fedpeft.runs.folder import write_delta as write_delta_file
from fedpeft.tuning.methods import TuningRequest, tune
from fedpeft.tuning.start import start_from
from fedpeft.tuning.tuned import (
    TunedModel,
    read_buffers,
    read_delta,
    write_buffers,
    write_delta,
)

EXPORT_FILE = "fedpeft.json"
"""Name of the file that describes an export; a folder with it is an export."""
_DELTA = "fedpeft-delta-1"
_OTHER_VERSION = re.compile(r"fedpeft-(?:delta|export)-\d+")


@dataclass(frozen=True)
class FinishedRun:
    """A run that has finished, with its final delta in the model.

    Attributes:
      folder: the run folder.
      experiment: resolved.
      summary: the headline figures.
      tuned: the model, which holds the final delta, and the final buffers where they travel; its
        config names the classes.
      preprocessing: how raw input became tensors; None where the run did not record it.
    """

    folder: Path
    experiment: Experiment
    summary: Mapping[str, object]
    tuned: TunedModel
    preprocessing: Preprocessing | None = None


@dataclass(frozen=True)
class Weights:
    """The trained part of a model, flat: its delta, and its buffers where they travel."""

    delta: Tensor
    buffers: Tensor


@dataclass(frozen=True)
class BeforeAndAfter:
    """A finished model that can go back to what it was before round 1.

    Attributes:
      tuned: the model, which holds `after` until other weights are taken.
      before: before round 1; None where the folder does not hold the untuned model (an export with
        the delta merged into the weights).
      after: after the last round.
      preprocessing: how raw input becomes tensors; None if it is not known.
    """

    tuned: TunedModel
    before: Weights | None
    after: Weights
    preprocessing: Preprocessing | None

    def take(self, weights: Weights) -> None:
        """Write `before` or `after` into the model."""
        write_delta(self.tuned, weights.delta)
        if self.tuned.buffers:
            write_buffers(self.tuned, weights.buffers)


class ExportInfo(BaseModel, frozen=True):
    """The content of `fedpeft.json` in an export.

    Attributes:
      format: of the file.
      kind: `merged` (an ordinary model), `peft` (stock peft loads it), `fedpeft` (only this package
        loads it).
      base: the folder of the backbone inside the export, or None where it is elsewhere or merged.
      fresh: our names of the head's parameters that are not in the original files.
      delta_digest: of the final delta.
      backbone_fingerprint: fingerprint of the frozen weights; "" for a merged model.
      experiment: of the run.
      preprocessing: how raw input becomes tensors, as in a run folder; None if it is not known.
    """

    format: Literal["fedpeft-export-1"]
    kind: str
    base: str | None
    fresh: tuple[str, ...]
    delta_digest: str
    backbone_fingerprint: str
    experiment: Experiment
    preprocessing: dict[str, Any] | None = None

    def to_json(self) -> dict[str, object]:
        """Return the content of the file."""
        return {**self.model_dump(mode="json", exclude_none=True), "base": self.base}


def load(folder: str | Path) -> nn.Module:
    """Load a finished run, or what `fedpeft export` wrote, whatever its method.

    The model is called as the Hugging Face model is: `model(pixel_values=x).logits`.

    Args:
      folder: a run folder, or an export.

    Returns:
      The model in eval mode, float32, on the CPU.

    Raises:
      RunFolderError: if the folder is neither, is not finished, or is corrupt.
      DeltaMismatchError: if the delta does not fit the model.
      ModelError: if the pretrained model cannot be found.

    Example:
      >>> quick = {"federation.rounds": 1, "client.epochs": 1, "engine.workers": 1}
      >>> summary = fedpeft.run({"model": {"name": "preset:tiny-vit"}}, quick, out="example")
      >>> model = fedpeft.load(summary["run_dir"])
      >>> type(model).__name__, model.training
      ('ViTForImageClassification', False)
    """
    opened = _open(home(folder))
    opened.finish()
    unstore(opened.tuned.model)
    return opened.tuned.model.eval()


def load_before_and_after(folder: Path) -> BeforeAndAfter:
    """Load a finished run or an export with its weights before and after training.

    Raises:
      RunFolderError: if the folder is neither, is not finished, or is corrupt.
      DeltaMismatchError: if the delta does not fit the model.
      ModelError: if the pretrained model cannot be found.
    """
    opened = _open(folder)
    adapter = find_adapter(opened.tuning) if opened.tuning else None
    if adapter is not None:
        start_from(opened.tuned, adapter)
    before = _weights(opened.tuned) if opened.delta else None
    opened.finish()
    return BeforeAndAfter(opened.tuned, before, _weights(opened.tuned), opened.preprocessing)


def load_run(folder: Path) -> FinishedRun:
    """Rebuild the tuned model of a finished run, without its data.

    Raises:
      RunFolderError: if the run has not finished, or a file is missing or corrupt.
      DeltaMismatchError: if the delta does not fit the model.
      ModelError: if the pretrained model cannot be found.
    """
    paths = RunFolder(folder)
    experiment, summary = stored_experiment(paths), read_summary(paths)
    opened = _open_run(paths, experiment, summary)
    opened.finish()
    unstore(opened.tuned.model)
    return FinishedRun(folder, experiment, summary, opened.tuned, opened.preprocessing)


@dataclass(frozen=True)
class _Opened:
    """A finished model, still as it was before round 1.

    Attributes:
      tuned: the model.
      preprocessing: how raw input becomes tensors; None if it is not known.
      delta: file of the final delta; None where the weights hold it already.
      digest: of the final delta.
      tuning: `[tuning]` of a run, which may name the adapter that it started from.
    """

    tuned: TunedModel
    preprocessing: Preprocessing | None
    delta: Path | None = None
    digest: str = ""
    tuning: TuningConfig | None = None

    def finish(self) -> None:
        """Write the final delta into the model."""
        if self.delta is not None:
            apply_delta(self.tuned, self.delta, self.digest)


def _open(path: Path) -> _Opened:
    if (path / EXPORT_FILE).is_file():
        return _open_export(path)
    paths = RunFolder(path)
    if paths.experiment.is_file():
        return _open_run(paths, stored_experiment(paths), read_summary(paths))
    raise RunFolderError(
        f"{path}: neither a run folder (experiment.toml) nor an export ({EXPORT_FILE}); name a "
        "folder that `fedpeft run` or `fedpeft export` wrote"
    )


def _open_run(paths: RunFolder, experiment: Experiment, summary: Mapping[str, object]) -> _Opened:
    tuned = build_tuned(Resolved(experiment), experiment.model.num_labels)
    digest = str(summary.get("delta_digest", ""))
    if not paths.delta.exists():
        _write_delta_again(paths, tuned, digest)
    found = read_object(paths.preprocessing)
    preprocessing = preprocessing_from(found) if found else None
    if preprocessing:
        name_classes(tuned.loaded.module, preprocessing.labels)
    return _Opened(tuned, preprocessing, paths.delta, digest, experiment.tuning)


def _weights(tuned: TunedModel) -> Weights:
    return Weights(read_delta(tuned), read_buffers(tuned))


def _write_delta_again(paths: RunFolder, tuned: TunedModel, digest: str) -> None:
    """Write the final delta from the checkpoint of the last round, where there is one."""
    for file in reversed(checkpoints(paths.checkpoints)):
        state = read_checkpoint(file).state
        if digest_of(state.delta) == digest:
            write_delta_file(paths.delta, tuned, state, {"rounds": str(state.round)})
            return


_MENDED = (
    "restore it, or remove it: it is written again from the checkpoint where the run folder still "
    "has that; else run the experiment again"
)


def apply_delta(tuned: TunedModel, file: Path, digest: str) -> None:
    """Write a saved delta into the model, after comparing it with its digest.

    Raises:
      RunFolderError: if the file is missing, corrupt or from another run.
      DeltaMismatchError: if the delta does not fit the model.
    """
    tensors = _read_tensors(file)
    buffers = {name: tensors.pop(name) for name in tuned.buffer_spec.names if name in tensors}
    try:
        flat = tuned.spec.flatten(tensors)
        flat_buffers = tuned.buffer_spec.flatten(buffers)
    except DeltaMismatchError as error:
        raise DeltaMismatchError(f"{file}: {error}") from error
    if digest_of(flat) != digest:
        raise RunFolderError(
            f"{file}: its SHA-256 is {digest_of(flat)[:12]}…, expected {digest[:12] or 'one'}…: "
            f"the file was changed or is of another run; {_MENDED}"
        )
    write_delta(tuned, flat)
    if buffers:
        write_buffers(tuned, flat_buffers)


def _read_tensors(file: Path) -> dict[str, Tensor]:
    try:
        with safe_open(file, framework="pt") as opened:
            found = (opened.metadata() or {}).get("format", "")
            tensors = {name: opened.get_tensor(name).clone() for name in opened.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise RunFolderError(
            f"{file.parent}: delta.safetensors is missing, and no checkpoint beside it holds the "
            "same delta; restore one of them, or run the experiment again into another folder"
        ) from None
    except SafetensorError as error:
        raise RunFolderError(f"{file}: no whole safetensors file: {error}; {_MENDED}") from error
    if found != _DELTA and _OTHER_VERSION.fullmatch(found):
        raise _by_another_version(file, found, _DELTA)
    return tensors


def _by_another_version(file: Path, found: str, ours: str) -> RunFolderError:
    return RunFolderError(
        f"{file}: was written by another version of fedpeft: its format is {found!r}, this one "
        f"reads {ours!r}. Load it with that version"
    )


def _open_export(folder: Path) -> _Opened:
    info = _read_info(folder / EXPORT_FILE)
    made = None if info.preprocessing is None else preprocessing_from(info.preprocessing)
    if info.kind == "merged":
        request = ModelRequest(name=str(folder.resolve()), task=Resolved(info.experiment).task)
        return _Opened(tune(load_model(request), TuningRequest("full")), made)
    loaded = _load_base(folder, info)
    delta = folder / "delta.safetensors"
    found = fingerprint(loaded.module, loaded.family, exclude=frozenset(_read_tensors(delta)))
    if found != info.backbone_fingerprint:
        raise RunFolderError(
            f"{folder}: the backbone's fingerprint is {found[:12]}…, expected "
            f"{info.backbone_fingerprint[:12]}…: the delta was trained on other weights; export "
            "the run again"
        )
    if made is not None:
        name_classes(loaded.module, made.labels)
    tuned = tune(loaded, tuning_request(Resolved(info.experiment)))
    return _Opened(tuned, made, delta, info.delta_digest)


def _load_base(folder: Path, info: ExportInfo) -> LoadedModel:
    """Load the backbone of an export; the same parameters are new as in the run."""
    model = info.experiment.model
    loaded = load_model(
        ModelRequest(
            name=str((folder / info.base).resolve()) if info.base else model.name,
            task=Resolved(info.experiment).task,
            num_labels=model.num_labels,
            revision=None if info.base else model.revision,
            head_init=info.experiment.tuning.head_init,
            seed=info.experiment.seed,
            pooling=model.pooling,
            dtype="float32" if info.base else model.dtype,
            quantization="none" if info.base else model.quantization,
        )
    )
    settle(loaded.module, loaded.storage, loaded.head)
    loaded = dataclasses.replace(loaded, storage=FLOAT32)
    paths = canonical_names(loaded.module, loaded.family)
    fresh = frozenset(paths[name] for name in info.fresh if name in paths)
    return dataclasses.replace(loaded, fresh=fresh)


def _read_info(file: Path) -> ExportInfo:
    try:
        return ExportInfo.model_validate_json(file.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        found = str(first["input"])
        if first["loc"] == ("format",) and _OTHER_VERSION.fullmatch(found):
            raise _by_another_version(file, found, "fedpeft-export-1") from error
        problem = ": ".join([".".join(map(str, first["loc"])) or "the file", first["msg"]])
        raise RunFolderError(f"{file}: cannot be read: {problem}. Export the run again") from error
