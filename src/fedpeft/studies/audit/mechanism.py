"""The checks of an experiment's mechanism, with probes in the parts of the run."""

from __future__ import annotations

import dataclasses
from typing import Any

from fedpeft.build.run import BuiltRun
from fedpeft.experiment.experiment import Experiment
from fedpeft.experiment.privacy import PRIVACY_MODES
from fedpeft.experiment.resolve import Resolved
from fedpeft.studies.audit.checks import FAMILY_LEVEL, UNSEEN, judge
from fedpeft.studies.audit.example_probes import observe_examples
from fedpeft.studies.audit.probes import observe_rounds


def check_mechanism(claimed: Experiment, running: Resolved, built: BuiltRun) -> dict[str, Any]:
    """Compare what a run's mechanism releases with what is claimed.

    Args:
      claimed: resolved; its mode guarantees privacy, its noise multiplier is above 0.
      running: what runs: the same, or without the noise.
      built: the parts of `running`.

    Returns:
      the keys of `audit.json` about the checks.
    """
    multiplier = claimed.privacy.noise_multiplier
    assert multiplier, "checked before"
    if PRIVACY_MODES[claimed.privacy.mode].gradient is not None:
        ready = running.changed(model=built.experiment.model, engine=built.experiment.engine)
        seen = observe_examples(ready, built.data, multiplier)
    else:
        seen = observe_rounds(built.start, built.plan, claimed, built.privacy)
    checks = judge(seen)
    return {
        "checks": [dataclasses.asdict(check) for check in checks],
        "checks_level": FAMILY_LEVEL,
        "faults": [check.name for check in checks if check.result == "found"],
        "unseen": list(UNSEEN),
    }
