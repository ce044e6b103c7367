"""What Tab offers: words of options, keys of the experiment file, and their values."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fedpeft.experiment.keys import Key

_LISTS: Mapping[str, str] = {
    "data.partition.scheme": "partitions",
    "data.source": "datasets",
    "engine.name": "engines",
    "federation.algorithm": "algorithms",
    "federation.sampler": "samplers",
    "model.name": "models",
    "model.task": "tasks",
    "tuning.method": "methods",
}
"""Keys whose values `fedpeft list` knows -> the word after it."""


def choices(names: Iterable[str]) -> Callable[[str], list[str]]:
    """Return a completion by some words."""
    return lambda incomplete: [name for name in names if name.startswith(incomplete)]


def lists(incomplete: str) -> list[str]:
    """Complete the name of a list of `fedpeft list`."""
    from fedpeft.cli.listing import LISTS

    return choices(LISTS)(incomplete)


def setting(incomplete: str) -> list[tuple[str, str]]:
    """Complete `KEY=VALUE`: a key of the experiment file, or one of its values."""
    from fedpeft.experiment.experiment import Experiment
    from fedpeft.experiment.keys import keys_of

    keys = {key.name: key for key in keys_of(Experiment)}
    name, sign, _ = incomplete.partition("=")
    if not sign:
        return [(f"{key.name}=", key.about) for key in keys.values()]
    return [(f"{name}={value}", about) for value, about in _values(keys.get(name))]


def settings(incomplete: str) -> list[tuple[str, str]]:
    """Complete `KEY=V1,V2,...`: a key, or the last of its values."""
    name, sign, values = incomplete.partition("=")
    if not sign:
        return setting(incomplete)
    before = values[: values.rfind(",") + 1]
    return [
        (f"{name}={before}{found.partition('=')[2]}", about) for found, about in setting(f"{name}=")
    ]


def _values(key: Key | None) -> Iterator[tuple[str, str]]:
    if key is None:
        return
    yield from ((value, "") for value in key.values)
    if key.name in _LISTS:
        from fedpeft.cli.listing import LISTS, PLACEHOLDERS

        for row in LISTS[_LISTS[key.name]]():
            if row["name"] not in PLACEHOLDERS:
                yield str(row["name"]), str(row.get("what", ""))
