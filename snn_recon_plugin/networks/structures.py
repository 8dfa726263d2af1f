"""Nested inputs and outputs: tuples, lists and dicts of tensors, walked in one place."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["copied", "describe", "map_tensors", "refilled", "tensors_in", "to_device"]


def map_tensors(function: Callable[[Tensor], Any], value: Any) -> Any:
    """Apply ``function`` to every tensor of a nested structure; anything else passes through unchanged.

    Args:
        function: called on each tensor.
        value: a tensor, or tuples, named tuples, lists and mappings of them, nested at will.

    Returns:
        The same structure with each tensor replaced; containers are new, the input's are not touched.
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
    """A copy of a mapping of a class of its own, such as one with attributes, with other items."""
    try:
        other = copy.copy(value)
    except (AttributeError, KeyError):
        # Attributes that are items: before Python 3.11 copying asks them for a method that none of them is.
        if not isinstance(value, dict):
            raise
        other = type(value).__new__(type(value))
        vars(other).update(vars(value))
        other.update(value)
    other.update(items)
    return other


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Yield the tensors of a nested structure in order.

    Args:
        value: as for :func:`map_tensors`.

    Yields:
        Each tensor, depth first.
    """
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors_in(item)
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from tensors_in(item)


def to_device(value: Any, device: torch.device) -> Any:
    """Move every tensor of a nested structure to ``device``.

    Args:
        value: as for :func:`map_tensors`; an object of another type that has a ``to`` method is moved through it.
        device: where to.

    Returns:
        The moved structure.
    """
    if not isinstance(value, (Tensor, tuple, list, Mapping)) and callable(getattr(value, "to", None)):
        return value.to(device)
    return map_tensors(lambda tensor: tensor.to(device), value)


def copied(value: Any) -> Any:
    """Copy every tensor of a nested structure, sparse ones too.

    Args:
        value: as for :func:`map_tensors`; an array, or an object of another type that has a ``clone`` method, is copied through
            its own method.

    Returns:
        The structure with tensors that share no memory with the old ones; anything else in it is the same.
    """
    if not isinstance(value, (Tensor, tuple, list, Mapping)):
        own = getattr(value, "clone", None) or (value.copy if isinstance(value, np.ndarray) else None)
        return own() if callable(own) else value
    return map_tensors(lambda tensor: tensor.clone(), value)


def describe(value: Any) -> str:
    """Say what a structure is in a few words, for error messages.

    Args:
        value: anything.

    Returns:
        For example ``"a tuple of (tensor [25, 8, 10], tensor [25, 8, 10])"``.
    """
    if isinstance(value, Tensor):
        return f"tensor {list(value.shape)}"
    if isinstance(value, (tuple, list)):
        shown = ", ".join(describe(item) for item in value[:4]) + (", ..." if len(value) > 4 else "")
        return f"a {type(value).__name__} of {len(value)} ({shown})"
    if isinstance(value, Mapping):
        return f"a {type(value).__name__} with the keys {list(value)[:8]}"
    return f"a {type(value).__name__}"
