"""The run loop: rounds, evaluation, records, checkpoints, and going on after any crash.

    for each round:  advance -> evaluate -> line in rounds.jsonl (fsync) -> checkpoint (rename)

The checkpoint is the commit: what comes before it is done again after a crash, from the same state
and the same seeds, and so with the same result.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from fedpeft.build.run import BuiltRun
from fedpeft.core.deltas import digest_of
from fedpeft.core.errors import RunFolderError
from fedpeft.data.examples import Federated
from fedpeft.data.summary import MOST_SHOWN, label_table
from fedpeft.experiment.callbacks import ended, started, stops
from fedpeft.experiment.read import dump_experiment
from fedpeft.experiment.resolve import planned_turns
from fedpeft.rounds.buffered import advance
from fedpeft.rounds.client_half import PRIVATE_NOTES
from fedpeft.rounds.round import RoundRecord
from fedpeft.rounds.sizes import wire_bytes
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
    experiment_digest,
    write_delta,
)
from fedpeft.runs.records import (
    Record,
    Totals,
    append_record,
    brief,
    cut_diagnostics,
    cut_records,
    read_records,
    record_of,
    totals,
)
from fedpeft.runs.watch import RoundDone, done_of
from fedpeft.server.state import ServerState

__all__ = ["evaluated", "facts_of", "line_of", "run_experiment", "summary_of"]

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
    """
    experiment, metric = built.experiment, built.tuned.loaded.task.headline
    state = _restore(built, folder)
    records = [brief(record) for record in cut_records(folder.rounds, state.round)]
    _write_head(built, folder)
    digest = experiment_digest(experiment)
    start_deltas(built, folder, state)
    if built.privacy.private:
        cut_diagnostics(folder.diagnostics, state.round)
    started(built.callbacks, facts_of(built, state, folder.path))
    stopped = False
    while built.privacy.goes_on(state.round) and not stopped:
        state, record = _one_round(built, state, folder)
        append_record(folder.rounds, record)
        keep_delta(built, folder, state)
        memories = built.engine.memories(state.committed)
        write_checkpoint(folder.checkpoints, Checkpoint(state, memories, digest))
        records.append(brief(record))
        on_round(done_of(record, totals(records, metric), experiment.federation.rounds))
        stopped = stops(built.callbacks, record)
    summary = _finish(built, folder, state, totals(records, metric))
    ended(built.callbacks, summary)
    return summary


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
        metric = built.tuned.loaded.task.headline.as_json()
        found = {**describe_environment(built.experiment.seed), "data": data, "metric": metric}
        write_json(folder.environment, found)
    partition = _partition(built.data)
    public = partition is not None and not built.privacy.private
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
    if built.privacy.private:
        true = built.privacy.diagnostics(record, built.plan.spec.num_params)
        append_record(folder.diagnostics, true)
    return state, line_of(built, state, record)


def line_of(built: BuiltRun, state: ServerState, record: RoundRecord) -> Record:
    """Make the line of a round: evaluated where that is due, and with what privacy adds."""
    private = built.privacy.record(record, _planned_bytes(built))
    last = not built.privacy.goes_on(state.round)
    due = last or state.round % built.experiment.federation.eval_every == 0
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
    if not built.plan.sampler.secret:
        return None
    sizing = built.plan.up[len(built.privacy.stages) :]  # those of privacy change no size
    up = wire_bytes(built.tuned, sizing, PRIVATE_NOTES)
    return wire_bytes(built.tuned, built.plan.down), up


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
    spent = built.privacy.client_epsilons(_read_late(folder.rounds))
    summary = summary_of(built, so_far, digest) | spent | {"run_dir": str(folder.path)}
    write_json(folder.summary, summary)
    return summary


def _read_late(file: Path) -> Iterator[Record]:
    """Yield the lines of a file that is read when somebody asks for the first one."""
    yield from read_records(file)


def facts_of(built: BuiltRun, state: ServerState, path: Path | None) -> dict[str, object]:
    """Return what callbacks are told when a run starts."""
    return {
        "experiment": built.experiment.model_dump(mode="json", exclude_none=True),
        "run_dir": str(path) if path else None,
        "round": state.round,
    }


def summary_of(built: BuiltRun, so_far: Totals, digest: str) -> dict[str, object]:
    """Return the summary of a run after some rounds, without its folder."""
    experiment, plan = built.experiment, built.plan
    done = so_far.rounds >= experiment.federation.rounds
    goes_on = built.privacy.goes_on(so_far.rounds)
    return {
        "name": experiment.name,
        "method": experiment.tuning.method,
        "seed": experiment.seed,
        "rounds": so_far.rounds,
        **so_far.last,
        "metric": so_far.metric.name,
        **({} if so_far.best is None else {f"best_{so_far.metric.name}": so_far.best}),
        "trainable_parameters": plan.spec.num_params,
        "total_parameters": sum(p.numel() for p in built.tuned.model.parameters()),
        "payload_bytes": plan.spec.num_bytes + plan.buffer_spec.num_bytes,
        "cohort": planned_turns(experiment)[0],
        "bytes_up": so_far.bytes_up,
        "bytes_down": so_far.bytes_down,
        "seconds": round(so_far.seconds, 3),
        **built.prefix.as_json(),
        **built.privacy.summary(so_far.rounds),
        "delta_digest": digest,
        "stopped": "rounds" if done else "callback" if goes_on else "privacy budget",
    }
