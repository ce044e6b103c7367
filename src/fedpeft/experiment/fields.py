"""Tables of an experiment file and of a site's file: their base, and the types of their values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import BaseModel, Field
from pydantic.fields import FieldInfo

Positive = Annotated[int, Field(ge=1)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Above = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Port = Annotated[int, Field(ge=1, le=65535)]
Separator = Annotated[str, Field(min_length=1, max_length=1)]
Options = dict[str, Any]  # values are checked by the builder that the name selects


class Table(
    BaseModel,
    extra="forbid",
    strict=True,
    frozen=True,
    use_attribute_docstrings=True,
    serialize_by_alias=True,
):
    """A table: no unknown key, no value of another type, no change after reading.

    The docstring below a key is its description in the reference pages.
    """

    def changed(self, **keys: object) -> Self:
        """Return a copy with other values: a mapping changes some keys of the table inside.

        Values are not checked again.
        """
        for key, value in keys.items():
            inner = getattr(self, key)
            if isinstance(inner, Table) and isinstance(value, Mapping):
                keys[key] = inner.changed(**value)
        return self.model_copy(update=keys)


def fields_of(schema: type[BaseModel]) -> dict[str, FieldInfo]:
    """Return the fields of a table by the keys of the file."""
    return {field.alias or name: field for name, field in schema.model_fields.items()}
