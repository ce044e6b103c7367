"""`answers.json`: what a run's language model answered before round 1 and after the last.

{"before": {"perplexity": .., "exact_match": .., "choices": {"accuracy": ..}}, "after": {..},
 "clients": {"a": {"before": {..}, "after": {..}}},
 "answers": [{"client": "a", "prompt": .., "reference": .., "before": .., "after": ..,
              "scores": {"exact_match": {"before": 0.0, "after": 1.0}}}, ..]}
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping

from fedpeft.answers.judge import Exam, Report, sit
from fedpeft.build.run import BuiltRun, score_clients
from fedpeft.client.settings import autocast
from fedpeft.core.strict_json import without_nan
from fedpeft.engines.workers import one_thread
from fedpeft.server.state import ServerState
from fedpeft.tuning.tuned import write_buffers, write_delta

SHOWN = ("before", "after")
"""The two models that are judged."""


def judge_run(built: BuiltRun, state: ServerState) -> dict[str, object] | None:
    """Return the content of `answers.json`; None where the run has no exam.

    Args:
      built: the run; its model holds the weights of `state` afterwards.
      state: after the last round.

    Raises:
      ConfigError: if a score of the user's own fails.
    """
    exam = built.exam
    if exam is None:
        return None
    reports: dict[str, Report] = {}
    figures: dict[str, dict[str, object]] = {}
    clients: dict[str, dict[str, object]] = {name: {} for name in built.data.test_clients}
    for side, each in zip(SHOWN, (built.start, state), strict=True):
        reports[side] = _report(built, exam, each)
        figures[side] = _figures(built, each, reports[side])
        for name, own in _of_clients(built, exam, each, reports[side]).items():
            clients[name][side] = own
    return {
        **figures,
        **({"clients": clients} if clients else {}),
        "answers": list(_answers(exam, reports)),
    }


def _report(built: BuiltRun, exam: Exam, state: ServerState) -> Report:
    write_delta(built.tuned, state.delta)
    if built.tuned.buffers:
        write_buffers(built.tuned, state.buffers)
    with one_thread(), autocast(built.settings):
        return sit(built.tuned, exam)


def _figures(built: BuiltRun, state: ServerState, report: Report) -> dict[str, object]:
    metric = built.tuned.loaded.task.headline.name
    found = {metric: without_nan(built.evaluate(state)[metric]), **report.means()}
    if report.choices is not None:
        found["choices"] = dataclasses.asdict(report.choices)
    return found


def _of_clients(
    built: BuiltRun, exam: Exam, state: ServerState, report: Report
) -> dict[str, dict[str, object]]:
    """Return the figures of each client of the test set; {} where it names none."""
    if not built.data.test_clients:
        return {}
    task = built.tuned.loaded.task
    found = dict[str, dict[str, object]]()
    for name, figure in score_clients(built.score(state), task, built.data).items():
        rows = [row for row, (client, _) in enumerate(exam.questions) if client == name]
        found[name] = {task.headline.name: figure, **report.means(rows)}
    return found


def _answers(exam: Exam, reports: Mapping[str, Report]) -> Iterator[dict[str, object]]:
    for row, (client, question) in enumerate(exam.questions):
        marked = {side: report.answers[row] for side, report in reports.items()}
        yield {
            **({"client": client} if client else {}),
            "prompt": exam.asked(question),
            "reference": exam.reference(question),
            **{side: each.text for side, each in marked.items()},
            "scores": {
                name: {side: each.scores[name] for side, each in marked.items()}
                for name in exam.scores
            },
        }
