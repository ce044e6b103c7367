"""The run loop: rounds, evaluation, records, checkpoints, and resuming after any crash.

    for each round:  advance -> evaluate -> line in rounds.jsonl (fsync) -> checkpoint (rename)

The checkpoint commits the round: after a crash, a round without one is repeated from the same state
and the same seeds, and so with the same result.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from fedpeft.build.run import BuiltRun
from fedpeft.core.errors import RunFolderError
from fedpeft.core.strict_json import without_nan
from fedpeft.data.examples import Federated
from fedpeft.data.summary import MOST_SHOWN, label_table, num_examples
from fedpeft.experiment.callbacks import ended, started, stops
from fedpeft.experiment.engines import ENGINES
from fedpeft.experiment.read import dump_experiment
from fedpeft.rounds.buffered import advance
from fedpeft.rounds.client_half import PRIVATE_NOTES
from fedpeft.rounds.round_plan import RoundRecord
from fedpeft.rounds.sizes import wire_bytes
from fedpeft.runs.checkpoint import (
    Checkpoint,
    prune,
    read_checkpoint,
    write_checkpoint,
)
from fedpeft.runs.deltas import keep_delta, start_deltas
from fedpeft.runs.environment import describe_environment
from fedpeft.runs.files import read_object, remove_temporary, storing, write_json, write_text
from fedpeft.runs.folder import (
    RunFolder,
    earlier_version,
    experiment_digest,
)
from fedpeft.runs.records import (
    Record,
    RoundDone,
    append_record,
    brief,
    cut_diagnostics,
    cut_records,
    drop_evaluation,
    record_of,
    totals,
)
from fedpeft.runs.summary import finish_run, is_evaluated
from fedpeft.server.state import ServerState

logger = logging.getLogger(__name__)


def run_experiment(
    built: BuiltRun, folder: RunFolder, on_round: Callable[[RoundDone], None]
) -> dict[str, object]:
    """Run all rounds that the folder does not hold yet. The caller holds the folder's lock.

    Returns:
      the summary, as in `summary.json`; `stopped` is `"rounds"`: all rounds are done,
      `"privacy budget"`: one more would exceed `privacy.epsilon`, or `"callback"`.

    Raises:
      RunFolderError: if the folder's newest checkpoint or its records cannot be used.
      StorageError: if the folder cannot be written after a round.
    """
    experiment, metric = built.experiment, built.tuned.loaded.task.headline
    state = first = _restore(built, folder)
    kept = cut_records(folder.rounds, state.round)
    if built.privacy.goes_on(state.round) and state.round % experiment.federation.eval_every:
        kept = drop_evaluation(folder.rounds, kept, metric)  # it was due as the last round's
    records = [brief(record) for record in kept]
    _write_head(built, folder)
    digest = experiment_digest(experiment)
    initial = _kept_initial(built, folder)
    start_deltas(built, folder, state)
    if built.privacy.private:
        cut_diagnostics(folder.diagnostics, state.round)
    for state, record, line in rounds_of(built, first, folder.path):
        memories = built.engine.memories(state.committed)
        with storing(folder.path, state.round):
            if built.privacy.private:
                true = built.privacy.diagnostics(record, built.plan.spec.num_params)
                append_record(folder.diagnostics, true)
            append_record(folder.rounds, line)
            keep_delta(built, folder, state)
            write_checkpoint(folder.checkpoints, Checkpoint(state, memories, digest))
        records.append(brief(line))
        on_round(RoundDone(line, totals(records, metric), experiment.federation.rounds))
    with storing(folder.path, state.round):
        summary = finish_run(built, folder, state, totals(records, metric), initial)
    ended(built.callbacks, summary)
    return summary


def rounds_of(
    built: BuiltRun, state: ServerState, run_dir: Path | None
) -> Iterator[tuple[ServerState, RoundRecord, Record]]:
    """Run rounds until all are done, the privacy budget is used up or a callback ends the run.

    Callbacks get a round after the caller has kept it.

    Args:
      built: the run.
      state: of the server before the first of these rounds.
      run_dir: of the run, for callbacks; None in memory.

    Yields:
      the state after a round, the round, and its line of `rounds.jsonl`.
    """
    experiment = built.experiment.model_dump(mode="json", exclude_none=True)
    path = str(run_dir) if run_dir else None
    started(built.callbacks, {"experiment": experiment, "run_dir": path, "round": state.round})
    stopped = False
    while built.privacy.goes_on(state.round) and not stopped:
        state, record = advance(state, built.plan, built.engine)
        line = _line_of(built, state, record)
        yield state, record, line
        stopped = stops(built.callbacks, line)


def initial_metrics(built: BuiltRun) -> Record:
    """Score the model before round 1; {} where `federation.eval_first` is off.

    A figure that is not finite is None.
    """
    if not built.experiment.federation.eval_first:
        return {}
    return {name: without_nan(value) for name, value in built.evaluate(built.start).items()}


def _kept_initial(built: BuiltRun, folder: RunFolder) -> Record:
    """Return the metrics before round 1; they are computed once and read when a run goes on."""
    if not built.experiment.federation.eval_first:
        return {}
    kept = read_object(folder.initial)
    if kept is None:
        kept = initial_metrics(built)
        write_json(folder.initial, kept)
    return kept


def _restore(built: BuiltRun, folder: RunFolder) -> ServerState:
    """Return the state of the newest checkpoint, or the one before round 1."""
    remove_temporary(folder.path)
    remove_temporary(folder.checkpoints)
    files = prune(folder.checkpoints)
    if not files:
        return built.start
    found = read_checkpoint(files[-1])
    if found.experiment != experiment_digest(built.experiment):
        earlier = earlier_version(folder, built.experiment)
        if earlier:
            raise RunFolderError(
                f"{files[-1]}: the checkpoint was written by {earlier}, and cannot be continued by "
                "this one. Nothing was changed; go on with that version, or choose another --out"
            )
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
        data: dict[str, object] = {
            "name": built.data.name,
            "digest": built.data.digest,
            "evaluated": len(built.data.test),
        }
        if not built.privacy.private:
            data["clients"] = len(built.data.clients)
            if not ENGINES[built.experiment.engine.name].deployed:
                data["examples"] = num_examples(built.data)
        task = built.tuned.loaded.task
        about = {"data": data, "task": task.name, "metric": task.headline.as_json()}
        found = {**describe_environment(built.experiment.seed), **about}
        if built.tuned.targets is not None:
            found["adapted"] = built.tuned.targets.as_json()
        write_json(folder.environment, found)
    made = built.data.preprocessing
    if made is not None and not folder.preprocessing.exists():
        write_json(folder.preprocessing, made.as_json())
    partition = _partition(built.data)
    public = partition is not None and not built.privacy.private
    if public and not folder.partition.exists():
        write_json(folder.partition, partition)
    if not folder.rounds.exists():
        write_text(folder.rounds, "")


def _partition(data: Federated) -> dict[str, object] | None:
    """Count each client's examples by label; None without labels, or for very many clients."""
    if data.labels is None or data.num_labels is None or len(data.clients) > MOST_SHOWN:
        return None
    names = data.label_names or tuple(str(label) for label in range(data.num_labels))
    counts = label_table(data).tolist()
    return {"clients": list(data.clients), "labels": list(names), "counts": counts}


def _line_of(built: BuiltRun, state: ServerState, record: RoundRecord) -> Record:
    """Make the line of a round: with an evaluation where one is due, and what privacy adds.

    A figure that is not finite, such as the loss of a model that diverged, is None.
    """
    return {name: without_nan(value) for name, value in _figures(built, state, record).items()}


def _figures(built: BuiltRun, state: ServerState, record: RoundRecord) -> Record:
    private = built.privacy.record(record, _planned_bytes(built))
    if not is_evaluated(built, state.round):
        return record_of(record, {}) | private
    began = time.perf_counter()
    line = record_of(record, built.evaluate(state), time.perf_counter() - began)
    if built.evaluate_clients is not None:
        name = "client_metrics" if built.data.test_clients else "client_metrics_by_class"
        line[name] = dict(built.evaluate_clients(state))
    return line | private


def _planned_bytes(built: BuiltRun) -> tuple[int, int] | None:
    """Return the bytes (down, up) of one turn where a record may not hold the true ones."""
    if not built.plan.sampler.secret:
        return None
    sizing = built.plan.up[len(built.privacy.stages) :]  # those of privacy change no size
    up = wire_bytes(built.tuned, sizing, PRIVATE_NOTES)
    return wire_bytes(built.tuned, built.plan.down), up
