"""Values of a report as json types, and back."""

from __future__ import annotations

import math
from dataclasses import fields, is_dataclass
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints


def plain_value(value: Any) -> Any:
    """Return a value as json types; floats that are not finite become None."""
    if is_dataclass(value):
        return {field.name: plain_value(getattr(value, field.name)) for field in fields(value) if field.compare}
    if isinstance(value, list | tuple):
        return [plain_value(item) for item in value]
    if isinstance(value, dict):
        return {str(key): plain_value(item) for key, item in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def fields_of(kind: type, plain: dict[str, Any]) -> dict[str, Any]:
    """Return the values of a dataclass's public fields from json types."""
    types = get_type_hints(kind)
    names = [field.name for field in fields(kind) if field.name in plain and not field.name.startswith("_")]
    return {name: _value_of(types[name], plain[name]) for name in names}


def _value_of(kind: Any, plain: Any) -> Any:
    """Return a value of a type from json types; None as a float is NaN."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin is UnionType:  # with None
        return None if plain is None else _value_of(parts[0], plain)
    if plain is None:
        if kind is float:
            return math.nan
        raise TypeError(f"null as {kind}")
    if is_dataclass(kind):
        assert isinstance(kind, type)
        return kind(**fields_of(kind, plain))
    if origin is tuple:
        return tuple(_value_of(parts[0], item) for item in plain)
    if origin is dict:
        return {parts[0](key): _value_of(parts[1], item) for key, item in plain.items()}
    return kind(plain)
