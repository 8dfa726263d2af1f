"""Nested inputs and outputs: tuples, lists and mappings of tensors; and rows gathered batch by batch.

lightning_utilities' ``apply_to_collection`` does not fit: it refuses frozen dataclasses, and a mapping with attributes of its own,
which nets return, would lose them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import DataError

__all__ = ["RowBuffer", "copied", "describe", "map_tensors", "refilled", "tensors_in", "to_device"]


def map_tensors(function: Callable[[Tensor], Any], value: Any) -> Any:
    """Return a nested structure with ``function`` applied to every tensor; anything else passes through unchanged.

    Args:
        function: called on each tensor.
        value: a tensor, or tuples, named tuples, lists and mappings of them, nested at will; left as it is.
    """
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, tuple):
        items = [map_tensors(function, item) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
    if isinstance(value, list):
        return [map_tensors(function, item) for item in value]
    if isinstance(value, Mapping):
        mapped = {key: map_tensors(function, item) for key, item in value.items()}
        return mapped if type(value) is dict or not isinstance(value, MutableMapping) else refilled(value, mapped)
    return value


def refilled(value: MutableMapping[Any, Any], items: Mapping[Any, Any]) -> MutableMapping[Any, Any]:
    """Return a copy of a mapping, with its class and attributes, that holds other items."""
    try:
        other = copy.copy(value)
    except (AttributeError, KeyError):
        # Attributes that are items: before Python 3.11 copying looks for a method that none of them is.
        if not isinstance(value, dict):
            raise
        other = type(value).__new__(type(value))
        vars(other).update(vars(value))
        other.update(value)
    other.update(items)
    return other


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Yield the tensors of a nested structure, depth first."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors_in(item)
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from tensors_in(item)


def to_device(value: Any, device: torch.device) -> Any:
    """Move every tensor of a nested structure to a device; an object of another type moves through its own ``to``."""
    if not isinstance(value, (Tensor, tuple, list, Mapping)) and callable(getattr(value, "to", None)):
        return value.to(device)
    return map_tensors(lambda tensor: tensor.to(device), value)


def copied(value: Any) -> Any:
    """Copy every tensor of a nested structure, sparse ones too; an array or another object through its own method."""
    if not isinstance(value, (Tensor, tuple, list, Mapping)):
        own = getattr(value, "clone", None) or (value.copy if isinstance(value, np.ndarray) else None)
        return own() if callable(own) else value
    return map_tensors(lambda tensor: tensor.clone(), value)


def describe(value: Any) -> str:
    """Describe a structure in a few words, e.g. ``"a tuple of 2 (tensor [25, 8, 10], tensor [25, 8, 10])"``."""
    if isinstance(value, Tensor):
        return f"tensor {list(value.shape)}"
    if isinstance(value, (tuple, list)):
        shown = ", ".join(describe(item) for item in value[:4]) + (", ..." if len(value) > 4 else "")
        return f"a {type(value).__name__} of {len(value)} ({shown})"
    if isinstance(value, Mapping):
        return f"a {type(value).__name__} with the keys {list(value)[:8]}"
    return f"a {type(value).__name__}"


class RowBuffer:
    """Rows gathered batch by batch in one tensor, allocated once if the number of rows could be foreseen."""

    def __init__(self) -> None:
        self._store: Tensor | None = None
        self._filled = 0

    def append(self, rows: Tensor, *, expected: int) -> None:
        """Add rows.

        Args:
            rows: ``[n, *]``, of one shape and dtype throughout, except ``n``.
            expected: probable number of rows in all.

        Raises:
            DataError: the rows have another shape than the first ones.
        """
        if self._store is None:
            self._store = rows.new_empty((max(expected, len(rows)), *rows.shape[1:]))
        if rows.shape[1:] != self._store.shape[1:]:
            raise DataError(
                f"samples of shape {list(rows.shape[1:])} after samples of shape {list(self._store.shape[1:])}",
                "samples of one shape in all batches",
                "check the loader's batches",
            )
        needed = self._filled + len(rows)
        if needed > len(self._store):
            grown = self._store.new_empty((max(needed, 2 * len(self._store)), *self._store.shape[1:]))
            grown[: self._filled] = self._store[: self._filled]
            self._store = grown
        self._store[self._filled : needed] = rows
        self._filled = needed

    def rows(self) -> Tensor:
        """Return all rows so far, ``[n, *]``."""
        assert self._store is not None
        return self._store[: self._filled]
