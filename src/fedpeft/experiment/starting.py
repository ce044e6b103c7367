"""`tuning.from`: the adapter that an experiment starts from gives the method and its options."""

from __future__ import annotations

from collections.abc import Mapping

from fedpeft.core.errors import ConfigError, ModelError
from fedpeft.core.text import shown
from fedpeft.experiment.experiment import TuningConfig
from fedpeft.models.locate import is_local, locate_adapter
from fedpeft.tuning.methods import METHODS, resolve_options
from fedpeft.tuning.peft_table import short_form
from fedpeft.tuning.start import ADAPTER_FILES, Adapter, read_adapter


def find_adapter(tuning: TuningConfig) -> Adapter | None:
    """Read the adapter of `tuning.from`; None where the key is not set.

    Raises:
      ModelError: if there is none, or the hub is out of reach.
    """
    if tuning.start is None:
        return None
    return read_adapter(locate_adapter(tuning.start, ADAPTER_FILES))


def with_adapter(tuning: TuningConfig, *, fetch: bool) -> TuningConfig:
    """Return `[tuning]` with the method and the options of the adapter that it starts from.

    Args:
      tuning: as the file gives it.
      fetch: whether an adapter of the hub is fetched. Where it is not, or cannot be, the table
        stays as it is: what it says is enough for a plan.

    Raises:
      ConfigError: if the table contradicts the adapter.
      ModelError: if a folder holds no adapter.
    """
    if tuning.start is None or not (fetch or is_local(tuning.start)):
        return tuning
    try:
        adapter = find_adapter(tuning)
    except ModelError:
        if is_local(tuning.start) or not {"method", "options"} & tuning.model_fields_set:
            raise
        return tuning  # a run says that it cannot be reached
    assert adapter is not None, "the key is set"
    _compare(tuning, adapter)
    if tuning.blocks is not None:
        raise ConfigError(
            "tuning.blocks: found with tuning.from; the adapter says which blocks it adapts: leave "
            "the key out"
        )
    return tuning.changed(method=adapter.method, options=adapter.options)


def _compare(tuning: TuningConfig, adapter: Adapter) -> None:
    """Refuse a method or options that are not those of the adapter."""
    given = tuning.method if "method" in tuning.model_fields_set else adapter.method
    name, meant = short_form(given) if given in METHODS else (given, {})
    if name != short_form(adapter.method)[0]:
        raise ConfigError(
            f"tuning.method: found {given!r}; the adapter of tuning.from is {adapter.method!r}: "
            "leave the key out"
        )
    theirs = _complete(adapter.method, adapter.options)
    ours: Mapping[str, object] = {**tuning.options, **meant}
    for key, value in ours.items():
        if key in theirs and _plain(theirs[key]) != _plain(value):
            raise ConfigError(
                f"tuning.options.{key}: found {shown(value)}; the adapter of tuning.from has "
                f"{shown(theirs[key])}: leave the key out"
            )


def _complete(method: str, options: Mapping[str, object]) -> dict[str, object]:
    if method not in METHODS:
        return dict(options)
    return resolve_options(method, options)


def _plain(value: object) -> object:
    """Return a value as TOML would write it: lists of names have no order."""
    return sorted(map(str, value)) if isinstance(value, list | tuple | set) else value
