"""Names that people read: which settings tell two rows apart, and how to say them.

federation.clients_per_round = 8, data.budget = 400     ->     8 a round, 400 examples
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import PurePath
from typing import Any

__all__ = ["say", "telling"]

Settings = Mapping[str, Any]

_ORDER = (
    "model.name",
    "data.partition.scheme",
    "data.partition.alpha",
    "data.partition.clients",
    "federation.clients_per_round",
    "data.budget",
    "federation.mode",
    "privacy.mode",
    "privacy.variant",
    "privacy.epsilon",
    "privacy.clip_norm",
    "federation.algorithm",
    "federation.rounds",
    "client.epochs",
    "client.lr",
)

_SAID: Mapping[str, Callable[[Any], str]] = {
    "model.name": lambda v: _last(str(v)),
    "data.partition.scheme": lambda v: {"iid": "IID", "dirichlet": "Dirichlet"}.get(v, str(v)),
    "data.partition.alpha": lambda v: f"α {v}",
    "data.partition.clients": lambda v: f"{v} clients",
    "federation.clients_per_round": lambda v: f"{v} a round",
    "federation.mode": str,
    "federation.rounds": lambda v: f"{v} rounds",
    "client.epochs": lambda v: f"{v} epochs",
    "client.lr": lambda v: f"learning rate {v}",
    "data.budget": lambda v: f"{v} examples",
    "privacy.mode": lambda v: "no privacy" if v == "none" else f"privacy {v}",
    "privacy.epsilon": lambda v: f"target ε {v}",
    "seed": lambda v: f"seed {v}",
}
_MISSING = {"data.budget": "all examples", "privacy.epsilon": "no target ε"}


def telling(keys: Sequence[str], settings: Sequence[Settings]) -> list[str]:
    """Pick the fewest keys, the best known first, that tell apart what all keys tell apart."""
    ranked = sorted(keys, key=lambda key: _ORDER.index(key) if key in _ORDER else len(_ORDER))
    wanted = _kinds(ranked, settings)
    chosen: list[str] = []
    for key in ranked:
        if _kinds([*chosen, key], settings) > _kinds(chosen, settings):
            chosen.append(key)
        if _kinds(chosen, settings) == wanted:
            break
    return chosen


def _kinds(keys: Sequence[str], settings: Sequence[Settings]) -> int:
    return len({tuple(str(each.get(key)) for key in keys) for each in settings})


def say(keys: Sequence[str], settings: Settings) -> str:
    """Say the values of some keys, in words."""
    told = [key for key in keys if not _idle(key, keys, settings)]
    return ", ".join(_say(key, settings.get(key)) for key in told)


def _idle(key: str, keys: Sequence[str], settings: Settings) -> bool:
    """Whether a key is an option of something that is switched off, and said to be."""
    off = "privacy.mode" in keys and settings.get("privacy.mode") == "none"
    return off and key.startswith("privacy.") and key != "privacy.mode"


def _last(name: str) -> str:
    """Shorten the path of a folder to its last part; the id of a hub model stays as it is."""
    return PurePath(name).name if PurePath(name).is_absolute() else name


def _say(key: str, value: Any) -> str:  # noqa: ANN401 - a setting may be anything
    if value is None:
        return _MISSING.get(key, f"{key.rpartition('.')[2]} –")
    return _SAID[key](value) if key in _SAID else f"{key.rpartition('.')[2]} {value}"
