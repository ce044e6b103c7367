"""The run loop: rounds, evaluation, records, checkpoints, and going on after any crash.

    for each round:  advance -> evaluate -> line in rounds.jsonl (fsync) -> checkpoint (rename)

The checkpoint is the commit: what comes before it is done again after a crash, from the same state
and the same seeds, and so with the same result.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from fedpeft.build.run import BuiltRun, build_run, resolve
from fedpeft.build.stability import planned_turns
from fedpeft.core.deltas import digest_of
from fedpeft.core.errors import ConfigError, RunFolderError
from fedpeft.data.examples import Federated
from fedpeft.data.summary import MOST_SHOWN, label_table
from fedpeft.experiment.experiment import Experiment
from fedpeft.experiment.privacy import (
    client_epsilons,
    cut_diagnostics,
    diagnostics_of,
    is_private,
    may_go_on,
    private_record,
    private_summary,
)
from fedpeft.experiment.read import dump_experiment
from fedpeft.plan.plan import wire_bytes
from fedpeft.rounds.buffered import advance
from fedpeft.rounds.client_half import PRIVATE_NOTES
from fedpeft.rounds.round import RoundRecord
from fedpeft.runs.checkpoint import (
    Checkpoint,
    prune,
    read_checkpoint,
    write_checkpoint,
)
from fedpeft.runs.deltas import keep_delta, start_deltas
from fedpeft.runs.environment import describe_environment
from fedpeft.runs.files import remove_temporary, write_json, write_text
from fedpeft.runs.folder import (
    RunFolder,
    check_same_experiment,
    default_out,
    experiment_digest,
    finished_summary,
    may_start,
    with_recorded_passes,
    write_delta,
)
from fedpeft.runs.lock import locked
from fedpeft.runs.records import (
    Record,
    Totals,
    append_record,
    brief,
    cut_records,
    read_records,
    record_of,
    totals,
)
from fedpeft.server.state import ServerState

__all__ = [
    "RoundDone",
    "done_of",
    "evaluated",
    "goes_on",
    "line_of",
    "peek",
    "run",
    "run_experiment",
]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RoundDone:
    """What a watcher is told after each round.

    Attributes:
      record: the line of `rounds.jsonl`.
      totals: over all rounds so far, those before a resume included.
      rounds: how many rounds the run will have.
      seconds_left: an estimate from the rounds so far.
    """

    record: Record
    totals: Totals
    rounds: int
    seconds_left: float


def run(
    experiment: Experiment,
    out: Path | None = None,
    *,
    resume: bool = False,
    on_round: Callable[[RoundDone], None] = lambda done: None,
) -> dict[str, object]:
    """Run an experiment in a folder, from its beginning or from where it stopped.

    Nothing is written before model and data are loaded and found to fit.

    Args:
      experiment: checked; need not be resolved.
      out: the run folder; None is `runs/<name>-<time>`.
      resume: go on with what is in `out`; a finished run gives its summary.
      on_round: called after each round, when its checkpoint is on the disk.

    Returns:
      the summary, as in `summary.json`.

    Raises:
      ConfigError: if the experiment is not possible.
      RunFolderError: if the folder is in use, corrupt, not empty or of another experiment.
      RoundError: if too few clients answered.
      EngineError: if the engine failed.
    """
    if resume and out is None:
        raise ConfigError(
            "--resume: there is no --out; name the run folder to go on with: --out DIR"
        )
    wanted = resolve(experiment)
    folder = RunFolder(out or default_out(wanted.name))
    finished = peek(wanted, folder, resume=resume)
    if finished is not None:
        return finished
    if wanted.engine.name == "flower":
        from fedpeft.federation.deploying import deploy  # late: it follows this module's runs

        return deploy(wanted, folder, on_round, resume=resume)
    built = build_run(with_recorded_passes(experiment, folder) if resume else experiment)
    try:
        folder.path.mkdir(parents=True, exist_ok=True)
        with locked(folder.path):
            finished = peek(built.experiment, folder, resume=resume)
            return finished or run_experiment(built, folder, on_round)
    finally:
        built.engine.close()


def peek(experiment: Experiment, folder: RunFolder, *, resume: bool) -> dict[str, object] | None:
    """Check that a folder may be used; changes nothing.

    Returns:
      the summary if nothing is left to do, else None.

    Raises:
      RunFolderError: if the folder holds something, or, with `resume`, something else.
    """
    may_start(folder, resume=resume)
    if not resume:
        return None
    experiment = resolve(experiment)
    check_same_experiment(folder, experiment)
    return finished_summary(folder, experiment.federation.rounds)


def run_experiment(
    built: BuiltRun, folder: RunFolder, on_round: Callable[[RoundDone], None]
) -> dict[str, object]:
    """Run all rounds that the folder does not hold yet. The caller holds the folder's lock.

    Returns:
      the summary, as in `summary.json`; `stopped` is `"rounds"`: all rounds are done,
      or `"privacy budget"`: one more would exceed `privacy.epsilon`.

    Raises:
      RunFolderError: if the folder's newest checkpoint or its records cannot be used.
    """
    experiment = built.experiment
    state = _restore(built, folder)
    records = [brief(record) for record in cut_records(folder.rounds, state.round)]
    _write_head(built, folder)
    digest = experiment_digest(experiment)
    start_deltas(built, folder, state)
    if is_private(experiment):
        cut_diagnostics(folder.diagnostics, state.round)
    while goes_on(built, state):
        state, record = _one_round(built, state, folder)
        append_record(folder.rounds, record)
        keep_delta(built, folder, state)
        memories = built.engine.memories(state.committed)
        write_checkpoint(folder.checkpoints, Checkpoint(state, memories, digest))
        records.append(brief(record))
        on_round(done_of(record, records, experiment.federation.rounds))
    return _finish(built, folder, state, totals(records))


def _restore(built: BuiltRun, folder: RunFolder) -> ServerState:
    """Return the state of the newest checkpoint, or the one before round 1."""
    remove_temporary(folder.path)
    remove_temporary(folder.checkpoints)
    files = prune(folder.checkpoints)
    if not files:
        return built.start
    found = read_checkpoint(files[-1])
    if found.experiment != experiment_digest(built.experiment):
        raise RunFolderError(
            f"{files[-1]}: the checkpoint is of another experiment than {folder.experiment}. "
            "Nothing was changed; choose another --out"
        )
    built.plan.spec.check_flat(found.state.delta)
    built.engine.restore(found.memories, found.state.committed)
    return found.state


def _write_head(built: BuiltRun, folder: RunFolder) -> None:
    """Write what is known before the first round."""
    text = dump_experiment(built.experiment)
    if not folder.experiment.exists() or folder.experiment.read_text("utf-8") != text:
        write_text(folder.experiment, text)
    if not folder.environment.exists():
        data = {"name": built.data.name, "digest": built.data.digest}
        found = {**describe_environment(built.experiment.seed), "data": data}
        write_json(folder.environment, found)
    partition = _partition(built.data)
    public = partition is not None and not is_private(built.experiment)
    if public and not folder.partition.exists():
        write_json(folder.partition, partition)
    if not folder.rounds.exists():
        write_text(folder.rounds, "")


def _partition(data: Federated) -> dict[str, object] | None:
    """Describe who has how many examples of which label; None without labels, or for a crowd."""
    if data.labels is None or data.num_labels is None or len(data.clients) > MOST_SHOWN:
        return None
    names = data.label_names or tuple(str(label) for label in range(data.num_labels))
    counts = label_table(data).tolist()
    return {"clients": list(data.clients), "labels": list(names), "counts": counts}


def _one_round(
    built: BuiltRun, state: ServerState, folder: RunFolder
) -> tuple[ServerState, Record]:
    state, record = advance(state, built.plan, built.engine)
    if is_private(built.experiment):
        true = diagnostics_of(built.experiment, record, built.plan.spec.num_params)
        append_record(folder.diagnostics, true)
    return state, line_of(built, state, record)


def goes_on(built: BuiltRun, state: ServerState) -> bool:
    """Whether there is a round after this state: planned, and within the privacy budget."""
    experiment = built.experiment
    return state.round < experiment.federation.rounds and may_go_on(experiment, state.round)


def line_of(built: BuiltRun, state: ServerState, record: RoundRecord) -> Record:
    """Make the line of a round: evaluated where that is due, and with what privacy adds."""
    private = private_record(built.experiment, record, _planned_bytes(built))
    due = state.round % built.experiment.federation.eval_every == 0 or not goes_on(built, state)
    return evaluated(built, state, record, due=due) | private


def evaluated(built: BuiltRun, state: ServerState, record: RoundRecord, *, due: bool) -> Record:
    """Make the line of a round, with the evaluation of its state where one is due."""
    if not due:
        return record_of(record, {})
    began = time.perf_counter()
    line = record_of(record, built.evaluate(state), time.perf_counter() - began)
    if built.evaluate_clients is not None:
        line["client_metrics"] = dict(built.evaluate_clients(state))
    return line


def _planned_bytes(built: BuiltRun) -> tuple[int, int] | None:
    """Return the bytes (down, up) of one turn where a record may not hold the true ones."""
    if built.plan.secret_sampler is None:
        return None
    sizing = [stage for stage in built.plan.up if stage.name != built.experiment.privacy.mode]
    up = wire_bytes(built.tuned, sizing, PRIVATE_NOTES)
    return wire_bytes(built.tuned, built.plan.down), up


def done_of(record: Record, records: list[Record], rounds: int) -> RoundDone:
    """Say how far a run of `rounds` rounds is: its newest line, and all lines so far."""
    so_far = totals(records)
    left = so_far.seconds / so_far.rounds * (rounds - so_far.rounds)
    return RoundDone(record, so_far, rounds, left)


def _finish(
    built: BuiltRun, folder: RunFolder, state: ServerState, so_far: Totals
) -> dict[str, object]:
    """Write the final delta, then the summary: a summary means that all is there."""
    digest = digest_of(state.delta)
    tensors = built.plan.spec.unflatten(state.delta)
    tensors |= built.plan.buffer_spec.unflatten(state.buffers)
    metadata = {
        "format": "fedpeft-delta-1",
        "method": built.experiment.tuning.method,
        "spec_digest": built.plan.spec.digest,
        "delta_digest": digest,
        "rounds": str(state.round),
    }
    write_delta(folder.delta, tensors, metadata)
    asked = client_epsilons(built.experiment, _read_late(folder.rounds))
    summary = _summary(built, so_far, digest) | asked | {"run_dir": str(folder.path)}
    write_json(folder.summary, summary)
    return summary


def _read_late(file: Path) -> Iterator[Record]:
    """Yield the lines of a file that is read when somebody asks for the first one."""
    yield from read_records(file)


def _summary(built: BuiltRun, so_far: Totals, digest: str) -> dict[str, object]:
    experiment, plan = built.experiment, built.plan
    done = so_far.rounds >= experiment.federation.rounds
    best = {
        "best_accuracy": so_far.best_accuracy,
        "best_perplexity": so_far.best_perplexity,
    }
    return {
        "name": experiment.name,
        "method": experiment.tuning.method,
        "seed": experiment.seed,
        "rounds": so_far.rounds,
        **so_far.last,
        **{key: value for key, value in best.items() if value is not None},
        "trainable_parameters": plan.spec.num_params,
        "total_parameters": sum(p.numel() for p in built.tuned.model.parameters()),
        "payload_bytes": plan.spec.num_bytes + plan.buffer_spec.num_bytes,
        "cohort": planned_turns(experiment)[0],
        "bytes_up": so_far.bytes_up,
        "bytes_down": so_far.bytes_down,
        "seconds": round(so_far.seconds, 3),
        **built.prefix.as_json(),
        **private_summary(experiment, so_far.rounds),
        "delta_digest": digest,
        "stopped": "rounds" if done else "privacy budget",
    }
