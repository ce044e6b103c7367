"""fedpeft as a session: the rounds of an experiment, one at a time, in an engine that stays."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bench.assignment import experiment_of, module_paths
from bench.contestants.work import save_delta
from fedpeft.build.run import build_run
from fedpeft.experiment.resolve import resolve
from fedpeft.rounds.buffered import advance
from fedpeft.tuning.tuned import write_delta

__all__ = ["open_session"]


def open_session(settings: Mapping[str, Any]) -> Mapping[str, Callable[..., Any]]:
    """Build a run.

    Returns:
      `round()`: the next round, from broadcast to new state, in seconds;
      `finish(out)`: write the delta, return the accuracy;
      `close()`: end the workers.
    """
    built = build_run(resolve(experiment_of(settings)))
    state = built.start

    def round() -> float:
        nonlocal state
        began = time.perf_counter()
        state, record = advance(state, built.plan, built.engine)
        seconds = time.perf_counter() - began
        if record.failures:
            raise RuntimeError(f"clients failed: {dict(record.failures)}")
        return seconds

    def finish(out: str) -> float:
        score = dict(built.evaluate(state))["accuracy"]
        write_delta(built.tuned, state.delta)
        save_delta(module_paths(built.tuned), Path(out))
        return float(score)

    return {"round": round, "finish": finish, "close": built.engine.close}
