"""Types of the values in an experiment file and in a site's file."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import ConfigDict, Field

__all__ = ["STRICT", "Above", "Fraction", "NotNegative", "Options", "Port", "Positive"]

Positive = Annotated[int, Field(ge=1)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Above = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Port = Annotated[int, Field(ge=1, le=65535)]
Options = dict[str, Any]  # values are checked by the builder that the name selects

STRICT = ConfigDict(extra="forbid", strict=True, frozen=True)
"""No unknown key, no value of another type, no change after reading."""
