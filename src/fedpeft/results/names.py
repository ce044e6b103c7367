"""Readable names of rows: the settings that tell rows apart, and a short text for each.

federation.clients_per_round = 8, data.budget = 400     ->     8 a round, 400 examples
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

Settings = Mapping[str, Any]

_TEXTS: Mapping[str, str] = {
    "model.name": "{}",
    "data.partition.scheme": "{}",
    "data.partition.alpha": "α {}",
    "data.partition.clients": "{} clients",
    "federation.clients_per_round": "{} a round",
    "data.budget": "{} examples",
    "federation.mode": "{}",
    "privacy.mode": "privacy {}",
    "privacy.variant": "variant {}",
    "privacy.epsilon": "target ε {}",
    "privacy.clip_norm": "clip_norm {}",
    "federation.algorithm": "algorithm {}",
    "federation.rounds": "{} rounds",
    "client.epochs": "{} epochs",
    "client.max_steps": "{} steps",
    "client.lr": "learning rate {}",
}
"""Setting -> its text; the settings that readers know best come first."""

_SPECIAL: Mapping[tuple[str, str], str] = {
    ("data.partition.scheme", "iid"): "IID",
    ("data.partition.scheme", "dirichlet"): "Dirichlet",
    ("data.budget", "None"): "all examples",
    ("privacy.mode", "none"): "no privacy",
    ("privacy.epsilon", "None"): "no target ε",
}
"""Setting and value -> text, where it is not the setting's usual one."""


def distinguishing(keys: Sequence[str], settings: Sequence[Settings]) -> list[str]:
    """Return the fewest keys, best known first, that distinguish as many settings as all keys."""
    order = list(_TEXTS)
    ranked = sorted(keys, key=lambda key: order.index(key) if key in order else len(order))
    chosen: list[str] = []
    for key in ranked:
        if _count_distinct([*chosen, key], settings) > _count_distinct(chosen, settings):
            chosen.append(key)
    return chosen


def _count_distinct(keys: Sequence[str], settings: Sequence[Settings]) -> int:
    return len({tuple(str(each.get(key)) for key in keys) for each in settings})


def describe(keys: Sequence[str], settings: Settings) -> str:
    """Return the values of some keys as text; without privacy, its options are left out."""
    if "privacy.mode" in keys and settings.get("privacy.mode") == "none":
        keys = [key for key in keys if key == "privacy.mode" or not key.startswith("privacy.")]
    return ", ".join(_text(key, settings.get(key)) for key in keys)


def _text(key: str, value: Any) -> str:  # noqa: ANN401 - a setting may be anything
    if special := _SPECIAL.get((key, str(value))):
        return special
    name = key.rpartition(".")[2]
    if value is None:
        return f"{name} –"
    if key == "model.name" and PurePath(str(value)).is_absolute():
        value = PurePath(value).name  # the id of a hub model stays as it is
    return _TEXTS.get(key, f"{name} {{}}").format(value)
