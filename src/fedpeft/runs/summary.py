"""The end of a run: its summary and its final delta."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from fedpeft.build.run import BuiltRun
from fedpeft.core.deltas import digest_of
from fedpeft.core.items import pack_items
from fedpeft.experiment.resolve import planned_turns
from fedpeft.runs.files import write_json
from fedpeft.runs.folder import RunFolder, write_delta
from fedpeft.runs.judged import SHOWN, judge_run
from fedpeft.runs.records import Record, Totals, read_records
from fedpeft.server.state import ServerState


def finish_run(
    built: BuiltRun, folder: RunFolder, state: ServerState, so_far: Totals, initial: Record
) -> dict[str, object]:
    """Write the final delta, then the summary: where there is one, the run folder is complete.

    `initial` holds the metrics before round 1, {} where they were not computed.
    """
    metadata = {"method": built.experiment.tuning.method, "rounds": str(state.round)}
    write_delta(folder.delta, built.plan, state, metadata)
    spent = built.privacy.client_epsilons(_read_late(folder.rounds))
    summary = summary_of(built, so_far, state, initial) | spent | {"run_dir": str(folder.path)}
    judged = judge_run(built, state)
    if judged is not None:
        write_json(folder.answers, judged)
        summary["answers"] = {side: judged[side] for side in SHOWN}
    write_json(folder.summary, summary)
    return summary


def _read_late(file: Path) -> Iterator[Record]:
    """Yield the lines of a file; it is read when the first one is taken."""
    yield from read_records(file)


def summary_of(
    built: BuiltRun, so_far: Totals, state: ServerState, initial: Record
) -> dict[str, object]:
    """Return the summary of a run after some rounds, without its folder.

    `initial` holds the metrics before round 1, {} where they were not computed.
    """
    experiment, plan, headline = built.experiment, built.plan, so_far.metric.name
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
        **({f"initial_{headline}": initial.get(headline)} if initial else {}),
        "trainable_parameters": plan.spec.num_params,
        "total_parameters": sum(p.numel() for p in built.tuned.model.parameters()),
        "payload_bytes": plan.spec.num_bytes + plan.buffer_spec.num_bytes,
        "cohort": planned_turns(experiment)[0],
        "bytes_up": so_far.bytes_up,
        "bytes_down": so_far.bytes_down,
        "messages_up": so_far.messages_up,
        "messages_down": so_far.messages_down,
        "seconds": round(so_far.seconds, 3),
        **built.prefix.as_json(),
        **built.privacy.summary(so_far.rounds),
        **_items(built, state),
        "delta_digest": digest_of(state.delta),
        "stopped": "rounds" if done else "callback" if goes_on else "privacy budget",
    }


def is_evaluated(built: BuiltRun, round: int) -> bool:
    """Whether an evaluation follows a round: one that is due, or that of the last round."""
    due = round % built.experiment.federation.eval_every == 0
    return due or not built.privacy.goes_on(round)


def _items(built: BuiltRun, state: ServerState) -> dict[str, object]:
    """Tell which test examples the final model got right, in the order of the test set.

    Empty where the headline metric is no accuracy, where an example is several predictions, or
    where a callback ended the run after a round without an evaluation.
    """
    accuracy = built.tuned.loaded.task.headline.name == "accuracy"
    if not accuracy or not is_evaluated(built, state.round):
        return {}
    right_N = built.score(state).right()
    return {} if right_N is None or not len(right_N) else {"items": pack_items(right_N.numpy())}
