"""Exports: a finished run as a folder that other libraries load.

    method                    content                               loaded by
    scratch full head bias    an ordinary model                     transformers
    types of peft             adapter + head, and base/             peft
    adapter prompt            fedpeft.json + delta, and base/       fedpeft.load only
    any, with model.pooling   the same                              fedpeft.load only

Every export has a model card (README.md), the processor's or tokenizer's files, and `fedpeft.json`,
from which `fedpeft.load` restores the same model. `base/` is left out if `peft` finds the base
model on the hub. Two other forms are written where they are asked for:

    adapter   the types of `peft`, adapter, prompt: without base/, which is named instead
    merged    the types of `peft` that can be folded into the weights: an ordinary model
"""

from __future__ import annotations

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

from fedpeft.build.model import build_tuned, model_request
from fedpeft.core.errors import RunFolderError
from fedpeft.core.storage import about
from fedpeft.experiment.experiment import Experiment, TuningConfig
from fedpeft.experiment.resolve import Resolved
from fedpeft.export.card import CardFacts, model_card
from fedpeft.export.inputs import write_inputs
from fedpeft.models.families import canonical
from fedpeft.models.fingerprint import fingerprint
from fedpeft.models.heads import name_classes
from fedpeft.models.loaded import LoadedModel
from fedpeft.models.locate import is_local
from fedpeft.models.pooling import pooling_of
from fedpeft.models.quiet import quiet
from fedpeft.models.shufflenet import ShuffleNet, save_shufflenet
from fedpeft.models.source import load_model
from fedpeft.models.stored import settle
from fedpeft.results.runs import read_run
from fedpeft.runs.files import write_json, write_text
from fedpeft.runs.load import EXPORT_FILE, ExportInfo, FinishedRun, load_run
from fedpeft.tuning.methods import METHODS
from fedpeft.tuning.peft_export import merge_peft, save_peft

if TYPE_CHECKING:
    from transformers import PreTrainedModel


FORMS = ("adapter", "merged")
"""The forms that `--as` names; without it, the form that every reader loads."""

_BASE = "base"


@dataclass(frozen=True)
class _Job:
    """An export.

    Attributes:
      run: the run.
      labels: names of its classes; () if they are not known.
      folder: to write.
      to: the path that the folder gets when it is complete.
      form: one of `FORMS`, or "".
      published: whether others get it: it then names nothing of this machine.
    """

    run: FinishedRun
    labels: tuple[str, ...]
    folder: Path
    to: Path
    form: str
    published: bool = False


def export_run(run: Path, to: Path, *, form: str = "", published: bool = False) -> Path:
    """Write the result of a finished run as a folder for other libraries.

    The folder is written atomically: completely or not at all.

    Args:
      run: a run folder.
      to: the new folder; it must not exist, or be empty.
      form: `adapter` (without the base model), `merged` (an ordinary model), or "".
      published: whether the folder leaves this machine: an adapter then calls its base model
        `base`, and one whose base is a folder of this machine is refused without it.

    Returns:
      The new folder.

    Raises:
      RunFolderError: if `to` is not empty, the run is corrupt or has not finished, or its method
        has no such form.
      ModelError: if the run's pretrained model cannot be found.
    """
    _check_target(to)
    if form and form not in FORMS:
        raise RunFolderError(f"--as {form}: unknown; allowed are {', '.join(FORMS)}, or no --as")
    finished = load_run(run)
    labels = _labels(run, finished)
    with _new_folder(to) as partial:
        job = _Job(finished, labels, partial, to.resolve(), form, published)
        info = _write_model(job)
        write_json(partial / EXPORT_FILE, info.to_json())
        for folder in (partial, *([partial / info.base] if info.base else [])):
            write_inputs(finished, folder)
        write_text(partial / "README.md", model_card(_facts(job, info)))
        _share_as_usual(partial)
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
        with about(to):
            yield partial
            if to.is_dir():
                to.rmdir()
            os.replace(partial, to)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _labels(folder: Path, run: FinishedRun) -> tuple[str, ...]:
    """Return the names of the classes, as the run recorded them; () if they are not known."""
    if run.preprocessing is not None:
        return run.preprocessing.labels
    partition = read_run(folder).partition
    known = partition.labels if partition else ()
    return known if len(known) == run.experiment.model.num_labels else ()


def _write_model(job: _Job) -> ExportInfo:
    """Write the tensors and configs, and return what was written."""
    tuned = job.run.tuned
    kind = _kind(job)
    if kind == "merged" or job.form == "merged":
        module = tuned.model if kind == "merged" else _merged(job)
        _save_model(module, job.folder, job.labels)
        return _info(job, "merged", base=None, backbone="")
    pristine = _pristine(job)
    on_hub = not is_local(pristine.source)
    if job.published and job.form == "adapter" and not on_hub:
        raise RunFolderError(
            f"--as adapter: the base model {pristine.source!r} is not on the hub, so nobody else "
            "could load the adapter; leave --as out to send the base model too, or use --as merged"
        )
    base = None if job.form == "adapter" or (kind == "peft" and on_hub) else _BASE
    if base:
        _save_model(pristine.module, job.folder / base, job.labels)
    if kind == "peft":
        own = _BASE if job.published else str(job.to / _BASE)
        place = own if base else _whole_path(pristine.source)
        save_peft(tuned, job.folder, base=place, revision=_revision(job, base))
    shutil.copyfile(job.run.folder / "delta.safetensors", job.folder / "delta.safetensors")
    names = {*tuned.spec.names, *tuned.buffer_spec.names}
    found = fingerprint(pristine.module, pristine.family, exclude=names)
    return _info(job, kind, base=base, backbone=found)


def _merged(job: _Job) -> nn.Module:
    """Return the model with what was trained folded into its weights."""
    tuned = job.run.tuned
    if (pooling := pooling_of(tuned.loaded.module)) is not None:
        raise RunFolderError(
            f"--as merged: stock libraries would not pool its tokens (model.pooling = {pooling!r}) "
            "but read the model as its class does; export without --as, for `fedpeft.load`"
        )
    merged = merge_peft(tuned) if tuned.peft_model is not None else None
    if merged is None or not _fits_its_config(merged):
        raise RunFolderError(
            f"--as merged: what {tuned.method} trains cannot be folded into the weights of "
            f"{type(tuned.loaded.module).__name__}; export without --as"
        )
    return merged


def _revision(job: _Job, base: str | None) -> str | None:
    return None if base else job.run.experiment.model.revision


def _whole_path(name: str) -> str:
    path = Path(name).expanduser()
    return str(path.resolve()) if path.exists() else name


def _share_as_usual(folder: Path) -> None:
    """Give every file the permissions that this process gives to new ones.

    Libraries write weights that only their owner can read.
    """
    probe = folder / ".new"
    probe.touch()
    usual = probe.stat().st_mode & 0o777
    probe.unlink()
    for file in folder.rglob("*"):
        if file.is_file():
            file.chmod(usual)


def _kind(job: _Job) -> str:
    kind = _whole_kind(job)
    if kind == "merged" and job.form == "adapter":
        raise RunFolderError(
            f"--as adapter: {job.run.tuned.method} trains the model's own weights, so there is no "
            "adapter; export without --as"
        )
    return kind


def _whole_kind(job: _Job) -> str:
    tuned = job.run.tuned
    if pooling_of(tuned.loaded.module) is not None:
        return "fedpeft"
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
    if not job.run.tuned.loaded.storage.plain:
        request = model_request(Resolved(experiment), experiment.model.num_labels)
        loaded = load_model(request)
        settle(loaded.module, loaded.storage, loaded.head)
        return loaded
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
        experiment=_portable(job.run.experiment, keep_model=job.form == "adapter"),
        base=base,
        fresh=tuple(sorted(canonical(loaded.family, name) for name in loaded.fresh)),
        delta_digest=str(job.run.summary["delta_digest"]),
        backbone_fingerprint=backbone,
        preprocessing=job.run.preprocessing.as_json() if job.run.preprocessing else None,
    )


def _portable(experiment: Experiment, *, keep_model: bool) -> Experiment:
    """Replace local paths of model and data by their last part.

    Args:
      experiment: of the run.
      keep_model: whether the model's path is needed: it is then made complete instead.
    """
    model, data = experiment.model, experiment.data
    name = _whole_path(model.name) if keep_model else _last_name(model.name)
    config = model.config and _last_name(model.config)
    return experiment.model_copy(
        update={
            "model": model.model_copy(update={"name": name, "config": config}),
            "data": data.model_copy(update={"source": _last_name(data.source)}),
            "tuning": experiment.tuning.changed(start=None),  # the delta holds what came of it
            "answers": None,
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
    name_classes(module, labels)
    with quiet():
        model.save_pretrained(str(folder))


def _facts(job: _Job, info: ExportInfo) -> CardFacts:
    source = job.run.tuned.loaded.folder
    card = source / "README.md" if source else None
    return CardFacts(
        run=read_run(job.run.folder),
        info=info,
        task=job.run.tuned.loaded.task,
        base_card=card.read_text("utf-8") if card and card.is_file() else "",
        backbone_class=type(job.run.tuned.loaded.module).__name__,
        preprocessing=job.run.preprocessing,
    )
