"""Types of the keys of experiment and site files."""

from __future__ import annotations

from typing import Annotated

from pydantic import ConfigDict, Field

__all__ = ["STRICT", "Above", "Fraction", "NotNegative", "Positive"]

STRICT = ConfigDict(extra="forbid", strict=True, frozen=True)
"""Unknown keys are errors, values are not converted, tables are not changed."""

Positive = Annotated[int, Field(ge=1)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Above = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
