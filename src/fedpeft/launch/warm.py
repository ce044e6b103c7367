"""Imported once by the process that a sweep's runs are forked from, so that none imports alone."""

from __future__ import annotations

import importlib

__all__: list[str] = []

for _name in (
    "transformers.modeling_utils",
    "transformers.models.vit.modeling_vit",
    "peft",
    "sklearn.datasets",
):
    importlib.import_module(_name)
