"""The rows of `fedpeft list models`: all models that need no download."""

from __future__ import annotations

from fedpeft.core.errors import ModelError
from fedpeft.models.locate import BUNDLED, Bundled
from fedpeft.models.presets import PRESETS, Preset
from fedpeft.models.weight_files import stored_tensors


def model_rows() -> list[dict[str, object]]:
    """List bundled models, then presets, each by name.

    Returns:
      A row for each model: its `name` in an experiment file, its default `task`, the number of
      `parameters` (None if the model's package is not installed), whether it is `pretrained` or an
      architecture only, and `what` it is.
    """
    rows: dict[str, tuple[Bundled | Preset, int | None]] = {
        **{name: (row, _count(row)) for name, row in sorted(BUNDLED.items())},
        **{f"preset:{name}": (row, row.parameters) for name, row in sorted(PRESETS.items())},
    }
    return [
        {
            "name": name,
            "task": row.task,
            "parameters": parameters,
            "pretrained": isinstance(row, Bundled),
            "what": row.about,
        }
        for name, (row, parameters) in rows.items()
    ]


def _count(row: Bundled) -> int | None:
    """Count the floating-point elements in a folder's files; None if it is not installed."""
    try:
        if row.parameters is not None:
            return row.parameters()
        stored = stored_tensors(row.folder()).values()
    except ModelError:
        return None
    return sum(tensor.num_elements for tensor in stored if tensor.is_floating)
