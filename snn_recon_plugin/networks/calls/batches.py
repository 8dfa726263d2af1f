"""Nested tensors walked, copied and described; a loader's batches taken apart, checked and cut to few samples."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ...errors import PASS_STEP, DataError

INSPECTED = 8  # samples that a net is inspected on


class Padded(NamedTuple):
    """Inputs of sequences that were padded at their ends to one length, and the lengths before."""

    inputs: Any
    lengths: Tensor  # [B]


def lengths_of(inputs: Any) -> Tensor | None:
    """Return the lengths of padded sequences, ``[B]``; None for other inputs."""
    return inputs.lengths if isinstance(inputs, Padded) else None


def align_ends(values: Tensor, lengths: Tensor, steps: int) -> Tensor:
    """Return values ``[T, B, *]`` of padded sequences at the end of so many steps, with zeros before."""
    longest = int(lengths.max())
    if longest > len(values):
        needed = "numbers of steps before the padding, counted where the layer sees them"
        fix = "let unpack return the number of steps that the net makes of each sequence"
        raise DataError(f"lengths up to {longest} of sequences with {len(values)} steps", needed, fix)
    found = values.new_zeros(steps, *values.shape[1:])
    for length in torch.unique(lengths).tolist():
        found[steps - length :, lengths == length] = values[:length, lengths == length]
    return found


# -- nested tensors ------------------------------------------------------------------------------------------------------------


def map_tensors(function: Callable[[Any], Any], value: Any, kind: Any = Tensor) -> Any:
    """Return tuples, named tuples, lists and mappings, nested at will, with ``function`` of every tensor, or item of a kind."""
    if isinstance(value, kind):
        return function(value)
    if isinstance(value, tuple):
        items = [map_tensors(function, item, kind) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
    if isinstance(value, list):
        return [map_tensors(function, item, kind) for item in value]
    if isinstance(value, Mapping):
        return refilled(value, {key: map_tensors(function, item, kind) for key, item in value.items()})
    return value


def map_samples(function: Callable[[Tensor, int], Tensor], inputs: Any, axis: int) -> Any:
    """Return inputs with every tensor replaced by ``function`` of it and of the axis of its samples, 0 for lengths."""
    if isinstance(inputs, Padded):
        return Padded(map_samples(function, inputs.inputs, axis), function(inputs.lengths, 0))
    return map_tensors(lambda value: function(value, axis), inputs)


def refilled(value: Mapping[Any, Any], items: Mapping[Any, Any]) -> Mapping[Any, Any]:
    """Return a copy of a mapping that holds other items, with its class and attributes if it can be written to."""
    if type(value) is dict or not isinstance(value, MutableMapping):
        return {**value, **items}
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


def tensors_in(value: Any, kind: Any = Tensor) -> Iterator[Any]:
    """Yield the tensors, or what is of another kind, in a nested structure, depth first."""
    if isinstance(value, kind):
        yield value
    elif isinstance(value, (tuple, list, Mapping)):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from tensors_in(item, kind)


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


# -- batches of a loader; their numbers, from 1, are for messages --------------------------------------------------------------


def split_batch(batch: Any, number: int | str) -> tuple[Any, Tensor]:
    """Return the inputs of an (input, target) pair as they are, and its targets as a tensor with at least one axis."""
    if not isinstance(batch, (tuple, list)) or len(batch) != 2:
        raise DataError(
            f"batch {number} is {describe(batch)}",
            "an (input, target) pair",
            f"{PASS_STEP}; or unpack=, which gives the pair, with lengths of padded sequences third",
        )
    inputs, target = batch
    try:
        target = torch.as_tensor(target)
    except (TypeError, ValueError, RuntimeError) as error:
        raise _bad_target(number, describe(target)) from error
    if target.ndim == 0:
        raise _bad_target(number, "a single number")
    return inputs, target


def _bad_target(number: int | str, found: str) -> DataError:
    fix = "let the loader give (input, target) pairs with the target as a tensor; for names of classes pass "
    fix += "unpack=lambda batch: (batch[0], torch.tensor([names.index(name) for name in batch[1]])), with the list names of all"
    return DataError(f"the target of batch {number} is {found}", "a tensor with one target for every sample", fix)


def stored_values(tensor: Tensor) -> Tensor:
    """Return the values that a tensor holds in memory: those of a sparse one that are not zero."""
    if tensor.layout is torch.strided:
        return tensor
    return tensor.coalesce().values() if tensor.layout is torch.sparse_coo else tensor.values()


def device_of(net: nn.Module) -> torch.device:
    """Return the device of a net's first parameter; the CPU for a net without any."""
    return next((parameter.device for parameter in net.parameters()), torch.device("cpu"))


def first_samples(
    inputs: Any, batch: int, most: int = INSPECTED, *, axis: int | None = None, run: Callable[[Any], Any] | None = None
) -> tuple[Any, int]:
    """Return views of the first samples of a batch of ``batch``, at most ``most``, and their number.

    The whole batch if the axis of its samples is unclear and not given as ``axis``; or if ``run``, which runs the net on inputs,
    raises on fewer samples, or returns another shape.
    """
    axis = batch_axis(inputs, batch, axis)
    if axis is None or batch <= most:
        return inputs, batch
    few = map_samples(lambda value, axis: value.narrow(axis, 0, most), inputs, axis)
    if run is None:
        return few, most
    try:
        returned = list(tensors_in(run(few)))
    except Exception:  # whatever a forward made for one batch size may raise
        return inputs, batch
    fits = bool(returned) and all(most in value.shape for value in returned if value.ndim > 0)
    return (few, most) if fits else (inputs, batch)


def batch_axis(inputs: Any, batch: int, known: int | None = None) -> int | None:
    """Return the axis of ``batch`` samples, 0 or 1, the same for all tensors of the inputs.

    None if neither axis has that length, if both have and it is not ``known`` which one it is, or if a tensor is sparse.
    """
    tensors = list(tensors_in(inputs.inputs if isinstance(inputs, Padded) else inputs))
    if known is not None:
        found = all(t.layout is torch.strided and t.ndim > known and t.shape[known] == batch for t in tensors)
        return known if tensors and found else None
    # Of two axes of the same length, either could be time.
    clear = all(t.layout is torch.strided and (t.ndim < 2 or t.shape[0] != t.shape[1]) for t in tensors)
    axes = [axis for axis in (0, 1) if all(t.ndim > axis and t.shape[axis] == batch for t in tensors)]
    return axes[0] if tensors and clear and axes else None
