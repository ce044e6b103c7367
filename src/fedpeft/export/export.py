"""Exports: a finished run as a folder that other libraries load.

    method                    content                               loaded by
    scratch full head bias    an ordinary model                     transformers
    types of peft             adapter + head, and base/             peft
    adapter prompt            fedpeft.json + delta, and base/       fedpeft.load only

Every export has a model card (README.md), the processor's or tokenizer's files, and `fedpeft.json`,
from which `fedpeft.load` restores the same model. `base/` is left out if `peft` finds the base
model on the hub.
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from torch import nn

from fedpeft.build.model import build_tuned
from fedpeft.core.errors import RunFolderError
from fedpeft.experiment.experiment import Experiment, Normalization, TuningConfig
from fedpeft.experiment.resolve import Resolved
from fedpeft.export.card import CardFacts, model_card
from fedpeft.models.families import canonical
from fedpeft.models.fingerprint import fingerprint
from fedpeft.models.loaded import ImageInput, LoadedModel, VideoInput
from fedpeft.models.locate import is_local
from fedpeft.models.quiet import quiet
from fedpeft.models.shufflenet import ShuffleNet, save_shufflenet
from fedpeft.results.runs import read_run
from fedpeft.runs.files import write_json, write_text
from fedpeft.runs.load import EXPORT_FILE, ExportInfo, FinishedRun, load_run
from fedpeft.tuning.methods import METHODS
from fedpeft.tuning.peft_export import save_peft

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["export_run"]

_BASE = "base"
_INPUT_FILES = (
    "preprocessor_config.json",
    "processor_config.json",
    "image_processor_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
    "vocab*",
    "merges.txt",
    "*.model",
)
_RESAMPLE = {"nearest": 0, "bilinear": 2, "bicubic": 3}


@dataclass(frozen=True)
class _Job:
    """An export: the run, the names of its classes, and the folder to write."""

    run: FinishedRun
    labels: tuple[str, ...]
    folder: Path


def export_run(run: Path, to: Path) -> Path:
    """Write the result of a finished run as a folder for other libraries.

    The folder is written atomically: completely or not at all.

    Args:
      run: a run folder.
      to: the new folder; it must not exist, or be empty.

    Returns:
      The new folder.

    Raises:
      RunFolderError: if `to` is not empty, or the run is corrupt or has not finished.
      ModelError: if the run's pretrained model cannot be found.
    """
    _check_target(to)
    finished = load_run(run)
    labels = _labels(run, finished)
    with _new_folder(to) as partial:
        job = _Job(finished, labels, partial)
        info = _write_model(job)
        write_json(partial / EXPORT_FILE, info.to_json())
        _write_inputs(job, partial)
        if info.base:
            _write_inputs(job, partial / info.base)
        write_text(partial / "README.md", model_card(_facts(job, info)))
    return to


def _check_target(to: Path) -> None:
    if to.exists() and not to.is_dir():
        raise RunFolderError(f"--to {to}: this is a file; name a folder that does not exist yet")
    found = sorted(path.name for path in to.iterdir()) if to.is_dir() else []
    if found:
        raise RunFolderError(
            f"--to {to}: the folder is not empty (found {', '.join(found[:3])}) and nothing is "
            "overwritten; name a folder that does not exist yet"
        )


@contextmanager
def _new_folder(to: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `to`, which is renamed to `to` if the block succeeds."""
    to.parent.mkdir(parents=True, exist_ok=True)
    partial = to.parent / f".{to.name}-{uuid.uuid4().hex[:8]}.partial"
    partial.mkdir()
    try:
        yield partial
        if to.is_dir():
            to.rmdir()
        os.replace(partial, to)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _labels(folder: Path, run: FinishedRun) -> tuple[str, ...]:
    """Return the names of the classes, from the run's partition; () if they are not known."""
    partition = read_run(folder).partition
    known = partition.labels if partition else ()
    return known if len(known) == run.experiment.model.num_labels else ()


def _write_model(job: _Job) -> ExportInfo:
    """Write the tensors and configs, and return what was written."""
    tuned = job.run.tuned
    kind = _kind(job)
    if kind == "merged":
        _save_model(tuned.model, job.folder, job.labels)
        return _info(job, kind, base=None, backbone="")
    pristine = _pristine(job)
    on_hub = not is_local(pristine.source)
    base = None if kind == "peft" and on_hub else _BASE
    if base:
        _save_model(pristine.module, job.folder / base, job.labels)
    if kind == "peft":
        save_peft(tuned, job.folder, base=base or pristine.source)
    shutil.copyfile(job.run.folder / "delta.safetensors", job.folder / "delta.safetensors")
    names = {*tuned.spec.names, *tuned.buffer_spec.names}
    found = fingerprint(pristine.module, pristine.family, exclude=names)
    return _info(job, kind, base=base, backbone=found)


def _kind(job: _Job) -> str:
    tuned = job.run.tuned
    stock = hasattr(tuned.loaded.module, "save_pretrained")
    if tuned.peft_model is not None:
        return "peft" if stock else "fedpeft"
    method = Resolved(job.run.experiment).method or METHODS[tuned.method]
    return "merged" if method.merges and (not stock or _fits_its_config(tuned.model)) else "fedpeft"


def _fits_its_config(module: nn.Module) -> bool:
    """Whether a model built from the config has the same tensors (not if biases were added)."""
    with torch.device("meta"):
        plain = type(module)(module.config)
    return set(plain.state_dict()) == set(module.state_dict())


def _pristine(job: _Job) -> LoadedModel:
    """Load the run's model again, as it was before tuning."""
    experiment = job.run.experiment
    untouched = TuningConfig.model_validate(
        {"method": "full", "head_init": experiment.tuning.head_init}
    )
    again = experiment.model_copy(update={"tuning": untouched})
    return build_tuned(Resolved(again), experiment.model.num_labels).loaded


def _info(job: _Job, kind: str, *, base: str | None, backbone: str) -> ExportInfo:
    loaded = job.run.tuned.loaded
    return ExportInfo(
        format="fedpeft-export-1",
        kind=kind,
        experiment=_portable(job.run.experiment),
        base=base,
        fresh=tuple(sorted(canonical(loaded.family, name) for name in loaded.fresh)),
        delta_digest=str(job.run.summary["delta_digest"]),
        backbone_fingerprint=backbone,
    )


def _portable(experiment: Experiment) -> Experiment:
    """Replace local paths of model and data by their last part."""
    model, data = experiment.model, experiment.data
    return experiment.model_copy(
        update={
            "model": model.model_copy(update={"name": _last_name(model.name)}),
            "data": data.model_copy(update={"source": _last_name(data.source)}),
        }
    )


def _last_name(name: str) -> str:
    path = Path(name).expanduser()
    return path.resolve().name if path.exists() else name


def _save_model(module: nn.Module, folder: Path, labels: Sequence[str]) -> None:
    if isinstance(module, ShuffleNet):
        save_shufflenet(module, folder)
        return
    model = cast("PreTrainedModel", module)
    if labels:
        model.config.id2label = dict(enumerate(labels))
        model.config.label2id = {label: index for index, label in enumerate(labels)}
    with quiet():
        model.save_pretrained(str(folder))


def _write_inputs(job: _Job, folder: Path) -> None:
    """Copy the tokenizer's or the processor's files; write a processor's file if it is missing."""
    source = job.run.tuned.loaded.folder
    for pattern in _INPUT_FILES if source else ():
        for file in sorted(cast(Path, source).glob(pattern)):
            if file.is_file() and not (folder / file.name).exists():
                shutil.copyfile(file, folder / file.name)
    inputs = job.run.tuned.loaded.inputs
    if isinstance(inputs, ImageInput):
        _write_processor(job, inputs, folder / "preprocessor_config.json")
    if isinstance(inputs, VideoInput):
        for name in ("preprocessor_config.json", "video_preprocessor_config.json"):
            if name.startswith("pre") or (folder / name).is_file():
                _write_processor(job, inputs.picture, folder / name, "VideoMAEImageProcessor")


def _write_processor(
    job: _Job, inputs: ImageInput, file: Path, processor: str = "ViTImageProcessor"
) -> None:
    """Write the run's size, rescaling, mean and deviation into the processor's file."""
    found = json.loads(file.read_text("utf-8")) if file.is_file() else {}
    given = job.run.experiment.data.transforms.normalize
    mean, std = inputs.mean, inputs.std
    if isinstance(given, Normalization):
        mean, std = tuple(given.mean), tuple(given.std)
    defaults = {
        "image_processor_type": processor,
        "do_resize": True,
        "resample": _RESAMPLE[inputs.resample],
        "do_rescale": True,
        "do_normalize": True,
    }
    fixed = {
        "size": {"height": inputs.height, "width": inputs.width},
        "rescale_factor": inputs.rescale,
        "image_mean": list(mean),
        "image_std": list(std),
    }
    write_json(file, {**defaults, **found, **fixed})


def _facts(job: _Job, info: ExportInfo) -> CardFacts:
    source = job.run.tuned.loaded.folder
    card = source / "README.md" if source else None
    return CardFacts(
        run=read_run(job.run.folder),
        info=info,
        task=job.run.tuned.loaded.task,
        base_card=card.read_text("utf-8") if card and card.is_file() else "",
        backbone_class=type(job.run.tuned.loaded.module).__name__,
    )
