"""The rows of `fedpeft list models`: all models that need no download."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fedpeft.core.errors import ModelError
from fedpeft.models.architectures import tensor_sizes
from fedpeft.models.locate import BUNDLED, Bundled
from fedpeft.models.presets import PRESETS

__all__ = ["ModelRow", "model_rows"]


@dataclass(frozen=True)
class ModelRow:
    """One model.

    Attributes:
      name: value of `model.name` in an experiment file.
      task: its default task.
      parameters: number of parameters in its files, or of a preset with its default head; None if
        the model's package is not installed.
      about: a description of one line.
      pretrained: whether it has pretrained weights, or is an architecture only.
    """

    name: str
    task: str
    parameters: int | None
    about: str
    pretrained: bool


def model_rows() -> Sequence[ModelRow]:
    """List bundled models, then presets, each by name."""
    bundled = [
        ModelRow(name, row.task, _count(row), row.about, pretrained=True)
        for name, row in sorted(BUNDLED.items())
    ]
    presets = [
        ModelRow(f"preset:{name}", row.task, row.parameters, row.about, pretrained=False)
        for name, row in sorted(PRESETS.items())
    ]
    return [*bundled, *presets]


def _count(row: Bundled) -> int | None:
    """Count the floating-point elements in a folder's files; None if it is not installed."""
    try:
        return sum(tensor_sizes(row.folder()).values())
    except ModelError:
        return None
