"""The run loop: rounds, evaluation, records, checkpoints, and going on after any crash.

    for each round:  run_round -> evaluate -> line in rounds.jsonl (fsync) -> checkpoint (rename)

The checkpoint is the commit: what comes before it is done again after a crash, from the same state
and the same seeds, and so with the same result.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from fedpeft.core.deltas import digest_of
from fedpeft.core.errors import RunFolderError
from fedpeft.engines.local import block_size
from fedpeft.experiment.build import BuiltRun, build_run, resolve
from fedpeft.experiment.checkpoint import (
    Checkpoint,
    checkpoints,
    read_checkpoint,
    write_checkpoint,
)
from fedpeft.experiment.config import Experiment
from fedpeft.experiment.environment import describe_environment, versions
from fedpeft.experiment.files import remove_temporary, write_json, write_text
from fedpeft.experiment.folder import (
    RunFolder,
    check_same_experiment,
    default_out,
    experiment_digest,
    finished_summary,
    may_start,
    write_delta,
)
from fedpeft.experiment.lock import locked
from fedpeft.experiment.read import dump_experiment
from fedpeft.experiment.records import (
    Record,
    Totals,
    append_record,
    cut_records,
    record_of,
    totals,
)
from fedpeft.rounds.round import run_round
from fedpeft.server.state import ServerState
from fedpeft.tuning.tuned import read_buffers

__all__ = ["RoundDone", "run", "run_experiment"]
