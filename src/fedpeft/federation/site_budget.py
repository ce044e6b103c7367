"""The privacy budget of a site: what its data has cost over all runs and servers, on its disk.

    privacy.jsonl    {"run": …, "turn": 3, "request": "ab12…", "ratio": 0.8, "uses": 10, "rate": 1}

`ratio` is the noise deviation over the sensitivity, `rate` the probability with which an example is
in a batch. Epsilon counts all uses of one rate as if each had the smallest ratio among them, an
upper bound on the true composition. A row without `rate` was not sampled. A repeated request for
the same turn is not counted again; a turn that fails after it was charged stays counted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedpeft.core.errors import PrivacyError
from fedpeft.experiment.epsilon import poisson_batches, uses_a_turn
from fedpeft.experiment.experiment import Experiment
from fedpeft.experiment.privacy import PRIVACY_MODES
from fedpeft.experiment.site_file import SiteConfig
from fedpeft.federation.journal import append, rows
from fedpeft.wire.privacy_accounting import Mechanism, epsilon_of_all


def charge(site: SiteConfig, experiment: Experiment, run: str, turn: int, request: str) -> None:
    """Record what a turn costs, before it is trained.

    Raises:
      PrivacyError: if all turns together would cost more than `privacy.epsilon`; nothing is
        recorded then.
      EngineError: if the ledger is corrupt.
    """
    mode = PRIVACY_MODES[experiment.privacy.mode]
    if mode.noise_by != "client":
        return
    file = Path(site.state) / "privacy.jsonl"
    charged = _rows(file)
    if any(row["request"] == request and row["run"] == run for row in charged):
        return
    ratio = (experiment.privacy.noise_multiplier or 0.0) / mode.distance
    uses = uses_a_turn(experiment)
    batches = poisson_batches(experiment)
    rate = batches.rate if batches else 1.0
    cost = {"ratio": ratio, "uses": uses, "rate": rate}
    row = {"run": run, "turn": turn, "request": request, **cost}
    limit, after = site.privacy.epsilon, _epsilon([*charged, row], site.privacy.delta)
    if limit is not None and after > limit:
        raise PrivacyError(
            "this site has spent its privacy budget: one more turn would bring it from epsilon "
            f"{_epsilon(charged, site.privacy.delta):.3g} to {after:.3g}, its limit over all runs "
            f"is {limit:g} (privacy.epsilon)"
        )
    append(file, row)


def spent(site: SiteConfig) -> float:
    """Return epsilon over all turns so far, at the site's delta; 0 before the first.

    Raises:
      EngineError: if the ledger is corrupt.
    """
    return _epsilon(_rows(Path(site.state) / "privacy.jsonl"), site.privacy.delta)


def _epsilon(charged: Sequence[Mapping[str, Any]], delta: float) -> float:
    parts = [
        (Mechanism(row["ratio"], rate if (rate := row.get("rate", 1.0)) < 1 else None), row["uses"])
        for row in charged
    ]
    return epsilon_of_all(parts, delta)


def _rows(file: Path) -> list[dict[str, Any]]:
    return rows(file, frozenset({"run", "request", "ratio", "uses"}), "privacy ledger")
