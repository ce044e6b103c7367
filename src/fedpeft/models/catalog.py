"""The rows of `fedpeft list models`: what can be named without a network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fedpeft.models.locate import BUNDLED
from fedpeft.models.presets import PRESETS

__all__ = ["ModelRow", "model_rows"]


@dataclass(frozen=True)
class ModelRow:
    """One model.

    Attributes:
      name: as it stands in a config.
      task: its usual task.
      parameters: how many it has, with its usual head.
      about: one line.
      pretrained: whether it has weights, or only an architecture.
    """

    name: str
    task: str
    parameters: int
    about: str
    pretrained: bool


def model_rows() -> Sequence[ModelRow]:
    """List bundled models, then presets, each by name."""
    bundled = [
        ModelRow(name, row.task, row.parameters, row.about, pretrained=True)
        for name, row in sorted(BUNDLED.items())
    ]
    presets = [
        ModelRow(f"preset:{name}", row.task, row.parameters, row.about, pretrained=False)
        for name, row in sorted(PRESETS.items())
    ]
    return [*bundled, *presets]
