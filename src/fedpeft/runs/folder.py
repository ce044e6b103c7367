"""The run folder: enough to repeat, resume, report, load and export a run.

    experiment.toml    resolved, complete            rounds.jsonl        one record a round
    environment.json   versions, hardware, seed      initial.json        figures before round 1
                                                     summary.json        the headline figures
    checkpoints/       safetensors + state           delta.safetensors   the final delta
    partition.json     examples a client and label   preprocessing.json  raw input to tensors
    answers.json       generated answers, scored

What may be done with a folder is decided here, before anything is written:

    --out is          missing or empty   without a checkpoint   with one   finished
    run               start              exit 2                 exit 2     exit 2
    run --resume      start              start                  go on      its summary
"""

from __future__ import annotations

import hashlib
import json
import time
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
from torch import Tensor

from fedpeft.build.passes import UNDECIDED
from fedpeft.core.deltas import digest_of
from fedpeft.core.errors import ConfigError, RunFolderError
from fedpeft.core.metrics import Metric, metric_in
from fedpeft.core.tensor_header import with_sorted_notes
from fedpeft.core.text import dotted, plain
from fedpeft.experiment.engines import PLACE
from fedpeft.experiment.epsilon import is_settled
from fedpeft.experiment.experiment import Experiment
from fedpeft.experiment.privacy import PRIVACY_MODES
from fedpeft.experiment.resolve import Resolved
from fedpeft.rounds.round_plan import RoundPlan
from fedpeft.runs.files import TEMPORARY, read_object, write_whole
from fedpeft.runs.lock import LOCK
from fedpeft.server.state import ServerState
from fedpeft.tuning.tuned import TunedModel


@dataclass(frozen=True)
class _Inside:
    """A path inside a run folder, by its name there."""

    name: str

    def __get__(self, folder: RunFolder, owner: type[RunFolder]) -> Path:
        return folder.path / self.name


@dataclass(frozen=True)
class RunFolder:
    """The paths of a run folder.

    Attributes:
      path: the folder; it may not exist yet.
    """

    path: Path

    experiment = _Inside("experiment.toml")
    """The resolved experiment, complete."""
    environment = _Inside("environment.json")
    """Versions, hardware and seed."""
    partition = _Inside("partition.json")
    """Examples of each client by label, where there are labels."""
    preprocessing = _Inside("preprocessing.json")
    """How raw input becomes tensors, and the names of the classes."""
    initial = _Inside("initial.json")
    """The metrics of the untuned model, where `federation.eval_first` is set."""
    rounds = _Inside("rounds.jsonl")
    """One record a round."""
    diagnostics = _Inside("diagnostics.jsonl")
    """True figures of a private simulation; its first line says "not private"."""
    answers = _Inside("answers.json")
    """What a language model answered before round 1 and at the end, where `[answers]` is set."""
    summary = _Inside("summary.json")
    """The headline figures; it exists when the run is finished."""
    delta = _Inside("delta.safetensors")
    """The final delta."""
    deltas = _Inside("deltas")
    """The delta before round 1 and after each round, where `run.keep_deltas` is set."""
    checkpoints = _Inside("checkpoints")
    """The newest checkpoints."""


def default_out(name: str) -> Path:
    """Return a folder that does not exist: `runs/<name>-<time>`."""
    base = Path("runs") / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    for number in range(1, 1000):
        out = base if number == 1 else base.with_name(f"{base.name}-{number}")
        if not out.exists():
            return out
    raise RunFolderError(f"{base}: this folder and 998 like it exist; choose one with --out")


def may_start(folder: RunFolder, *, resume: bool) -> None:
    """Check that a run may be started or continued in a folder. Changes nothing.

    Raises:
      RunFolderError: if the folder is a file, or holds something and `resume` is off, or holds
        something that is not a run and `resume` is on.
    """
    path = folder.path
    if path.exists() and not path.is_dir():
        raise RunFolderError(f"{path}: this is a file; --out must name a folder")
    found = _content(path)
    if not found or (resume and folder.experiment.exists()):
        return
    shown = ", ".join(found[:3]) + (" ..." if len(found) > 3 else "")
    if resume:
        raise RunFolderError(
            f"{path}: holds no experiment.toml, so it is no run folder (found {shown}). Nothing "
            "was changed; name the folder of a run, or a new folder"
        )
    raise RunFolderError(
        f"{path}: the folder is not empty (found {shown}) and nothing is overwritten. Choose "
        "another --out, or go on with the run in it by --resume"
    )


def check_same_experiment(folder: RunFolder, experiment: Experiment) -> None:
    """Compare a resolved experiment with the one that the folder holds, if it holds one.

    Only a larger `federation.rounds` may differ, and keys that cannot change a result, such as
    `engine.workers`. Where `engine.clients_per_pass` is left open, the number in the folder counts.

    Raises:
      RunFolderError: naming the keys that differ.
    """
    if not folder.experiment.exists():
        return
    stored = stored_experiment(folder)
    ours, theirs = dotted(_comparable(experiment)), dotted(_comparable(stored))
    if experiment.model.num_labels is None:  # the stored one has it from the data
        theirs.pop("model.num_labels", None)
    if experiment.engine.clients_per_pass in UNDECIDED:  # the stored one holds the choice
        theirs.pop("engine.clients_per_pass", None)
    for key in _FROM_DATA:  # the stored one has them from the data
        if key not in ours:
            theirs.pop(key, None)
    differ = [key for key in sorted(set(ours) | set(theirs)) if ours.get(key) != theirs.get(key)]
    problems = [
        f"{key} is {_shown(ours.get(key))} here and {_shown(theirs.get(key))} in the folder"
        for key in differ
    ]
    here, there = experiment.federation.rounds, stored.federation.rounds
    if here < there:
        problems.append(f"federation.rounds is {here} here and {there} in the folder")
    elif here > there and (key := _over_rounds(experiment)):
        problems.append(
            f"federation.rounds is {here} here and {there} in the folder, and client.{key} spreads "
            "over all rounds"
        )
    if problems:
        more = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
        if here >= there and set(differ) <= set(ours) - set(theirs):
            earlier = earlier_version(folder, experiment)
            if earlier:
                raise RunFolderError(
                    f"{folder.path}: the run was begun by {earlier}: {'; '.join(problems[:5])}"
                    f"{more}. Go on with that version, set these keys to what it did, or choose "
                    "another --out"
                )
        raise RunFolderError(
            f"{folder.path}: the folder holds another experiment: {'; '.join(problems[:5])}{more}. "
            "Only a larger federation.rounds may differ; choose another --out"
        )


def experiment_digest(experiment: Experiment) -> str:
    """Return the SHA-256 (hex) of all keys of an experiment that can change a round's result."""
    text = json.dumps(_comparable(experiment), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


_FROM_DATA = ("privacy.noise_multiplier", "privacy.examples_per_client")


def stored_experiment(folder: RunFolder) -> Experiment:
    """Read `experiment.toml` of a run folder.

    Raises:
      RunFolderError: if it is missing or cannot be read.
    """
    from fedpeft.experiment.read import read_toml

    if not folder.experiment.exists():
        raise RunFolderError(
            f"{folder.path}: holds no experiment.toml, so it is no run folder; name one that "
            "`fedpeft run` wrote"
        )
    try:
        return as_begun(Experiment.model_validate(read_toml(folder.experiment)))
    except (ConfigError, ValueError) as error:
        raise RunFolderError(
            f"{folder.experiment}: cannot be read: {error}. Nothing was changed; put the file back "
            "as it was, or choose another --out"
        ) from error


def earlier_version(folder: RunFolder, experiment: Experiment) -> str:
    """Describe the version that wrote a folder, if it had fewer keys than this one; else "".

    Args:
      folder: of a run, with an `experiment.toml`.
      experiment: resolved by this version.
    """
    from fedpeft.experiment.read import dump_experiment, read_toml

    ours = dotted(tomllib.loads(dump_experiment(experiment)))
    missing = set(ours) - set(dotted(read_toml(folder.experiment)))
    new = sorted(
        key for key in missing if ".options." not in key and not key.startswith("objects.")
    )
    if not new:
        return ""
    versions = (read_object(folder.environment) or {}).get("versions")
    found = versions.get("fedpeft") if isinstance(versions, dict) else None
    more = f" and {len(new) - 3} more keys" if len(new) > 3 else ""
    return (
        f"an earlier fedpeft (environment.json: {plain(found or 'not recorded', 40)}), which did "
        f"not have {', '.join(new[:3])}{more}"
    )


def as_begun(experiment: Experiment) -> Experiment:
    """Name the sampling of a run that began before it could be chosen: its epochs were shuffled."""
    chosen = experiment.privacy
    if PRIVACY_MODES[chosen.mode].unit != "example" or chosen.example_sampling is not None:
        return experiment
    filled = chosen.model_copy(update={"example_sampling": "shuffle"})
    return experiment.model_copy(update={"privacy": filled})


def with_recorded_privacy(experiment: Experiment, folder: RunFolder) -> Experiment:
    """Take from a run folder what privacy had from the data, where that is left open."""
    if is_settled(experiment) or not folder.experiment.exists():
        return experiment
    return experiment.model_copy(update={"privacy": stored_experiment(folder).privacy})


def with_recorded_passes(experiment: Experiment, folder: RunFolder) -> Experiment:
    """Take `engine.clients_per_pass` from a run folder where the experiment leaves it open."""
    if experiment.engine.clients_per_pass not in UNDECIDED or not folder.experiment.exists():
        return experiment
    recorded = stored_experiment(folder).engine.clients_per_pass or 1
    return experiment.changed(engine={"clients_per_pass": recorded})


def finished_summary(folder: RunFolder, rounds: int) -> dict[str, object] | None:
    """Return the summary of a run that has done `rounds` rounds, or None if there is more to do.

    `run_dir` is where the folder is now.
    """
    summary = read_object(folder.summary)
    if summary is None:
        return None
    done = int(str(summary.get("rounds", 0))) >= rounds
    ended = done or summary.get("stopped") == "privacy budget"
    return {**summary, "run_dir": str(folder.path)} if ended else None


def read_summary(folder: RunFolder) -> dict[str, object]:
    """Read `summary.json`; `run_dir` is where the folder is now.

    Raises:
      RunFolderError: if it is missing or not JSON.
    """
    summary = read_object(folder.summary)
    if summary is None:
        raise RunFolderError(
            f"{folder.path}: holds no summary.json: the run is not finished. Go on with "
            f"`fedpeft run --resume --out {folder.path}`"
        )
    return {**summary, "run_dir": str(folder.path)}


def recorded_metric(folder: RunFolder) -> Metric | None:
    """Return the headline metric that `environment.json` keeps; None where it keeps none."""
    try:
        recorded = json.loads(folder.environment.read_text("utf-8")).get("metric")
    except (OSError, ValueError, AttributeError):
        return None
    return metric_in([], recorded) if recorded else None


def write_delta(
    file: Path, plan: RoundPlan | TunedModel, state: ServerState, metadata: Mapping[str, str]
) -> None:
    """Write the delta and the buffers of a state as safetensors, whole or not at all.

    Args:
      file: to write.
      plan: names the tensors; so does the tuned model of the run.
      state: of the server.
      metadata: of the file, beside its format and digests.
    """
    tensors = plan.spec.unflatten(state.delta) | plan.buffer_spec.unflatten(state.buffers)
    copies = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    described = {
        **metadata,
        "format": "fedpeft-delta-1",
        "spec_digest": plan.spec.digest,
        "delta_digest": digest_of(state.delta),
    }
    write_whole(file, lambda partial: _save(copies, partial, described))


def _save(tensors: dict[str, Tensor], file: Path, metadata: dict[str, str]) -> None:
    """Write a safetensors file whose bytes depend on its content alone."""
    safetensors.torch.save_file(tensors, file, metadata)
    with file.open("r+b") as opened:
        length = int.from_bytes(opened.read(8), "little")
        header = with_sorted_notes(opened.read(length))
        opened.seek(8)
        opened.write(header)


def _content(path: Path) -> list[str]:
    """List what a folder holds, without a lock and the temporary files of a crash."""
    names = sorted(item.name for item in path.iterdir()) if path.exists() else []
    return [name for name in names if name != LOCK and not name.endswith(TEMPORARY)]


def _comparable(experiment: Experiment) -> dict[str, object]:
    """Return an experiment as a table without the keys that may differ when a run is resumed."""
    table = experiment.model_dump(mode="json", exclude={"sweep"}, exclude_none=True)
    table["federation"].pop("rounds")
    table["federation"].pop("eval_first")  # it changes no round
    table["run"].pop("callbacks", None)  # they change no result
    table.pop("answers", None)  # of the final model, which it does not change
    for key in _FIRST_CONTACT:
        table["federation"].pop(key, None)
    for (part, key), before in _LATER.items():
        if table[part].get(key) == before:
            table[part].pop(key)
    for key in PLACE:
        table["engine"].pop(key, None)
    if table["engine"].get("clients_per_pass") in (1, *UNDECIDED):
        table["engine"].pop("clients_per_pass", None)
    return table


def _over_rounds(experiment: Experiment) -> str:
    """Return the key by which a round depends on the number of all rounds; "" if none does."""
    client = experiment.client
    if client.round_schedule != "constant":
        return "round_schedule"
    return "round_warmup" if 0 < client.round_warmup < 1 else ""


_LATER: Mapping[tuple[str, str], object] = {
    ("federation", "max_weight_share"): 1,
    ("privacy", "example_sampling"): "shuffle",
    ("data", "header"): True,
    ("model", "dtype"): "float32",
    ("model", "quantization"): "none",
    ("client", "accumulation"): 1,
    ("client", "by_length"): False,
    ("client", "gradient_checkpointing"): False,
    ("client", "schedule"): "constant",
    ("client", "warmup"): 0,
    ("client", "round_schedule"): "constant",
    ("client", "round_warmup"): 0,
    ("client", "round_final"): 0.1,
}
"""Keys that earlier versions did not have -> what they did."""
_FIRST_CONTACT = ("max_examples", "site_examples")
"""Keys of `[federation]` that count only when a site announces itself: its number is then fixed."""


def _shown(value: object) -> str:
    return "not set" if value is None else json.dumps(value)


def peek(resolved: Resolved, folder: RunFolder, *, resume: bool) -> dict[str, object] | None:
    """Check that a resolved experiment may use a folder, and change nothing.

    Returns:
      the summary of a finished run, else None.

    Raises:
      RunFolderError: if the folder is not empty, or, with `resume`, holds another experiment.
    """
    may_start(folder, resume=resume)
    if not resume:
        return None
    check_same_experiment(folder, resolved.experiment)
    return finished_summary(folder, resolved.experiment.federation.rounds)
