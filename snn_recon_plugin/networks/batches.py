"""Batches of a user's loader: taken apart, checked, and cut to a few samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import DataError
from .structures import describe, map_tensors, tensors_in, to_device

__all__ = ["INSPECTED", "Batch", "batch_axis", "cut", "device_of", "few_samples", "prepare_batch", "split_batch", "unpack_of"]

# Usual keys of labels in batches that are dictionaries.
_TARGETS = ("label", "labels", "target", "targets", "y", "class", "classes")
INSPECTED = 8  # samples that a net is inspected on


@dataclass(frozen=True)
class Batch:
    """A batch that is checked and on the net's device.

    Args:
        inputs: the inputs.
        targets: one target a sample, in the user's form.
        number: number of the batch in the loader, from 1.
    """

    inputs: Any
    targets: Tensor
    number: int


def prepare_batch(inputs: Any, targets: Tensor, number: int, device: torch.device) -> Batch:
    """Check a batch, and move it to a device.

    Raises:
        DataError: it has no sample, or inputs that are not finite.
    """
    _check_finite(inputs, number)
    if len(targets) == 0:
        raise DataError(f"batch {number} is empty", "at least one sample in every batch", "drop empty batches")
    return Batch(to_device(inputs, device), targets.to(device), number)


def device_of(net: nn.Module) -> torch.device:
    """Return the device of a net's first parameter; the CPU for a net without any."""
    for parameter in net.parameters():
        return parameter.device
    return torch.device("cpu")


def split_batch(batch: Any, number: int) -> tuple[Any, Tensor]:
    """Return the inputs of a batch as they are, and its targets as a tensor with at least one axis.

    Args:
        batch: an (input, target) pair.
        number: number of the batch from 1, for messages.

    Raises:
        DataError: it isn't a pair, or the target isn't a tensor or a list of numbers.
    """
    if not isinstance(batch, (tuple, list)) or len(batch) != 2:
        raise DataError(f"batch {number} is {describe(batch)}", "an (input, target) pair", "pass " + unpack_of(batch))
    inputs, target = batch
    if not isinstance(target, Tensor):
        try:
            target = torch.as_tensor(target)
        except (TypeError, ValueError, RuntimeError) as error:
            raise _bad_target(number, describe(target)) from error
    if target.ndim == 0:
        raise _bad_target(number, "a single number")
    return inputs, target


def unpack_of(batch: Any) -> str:
    """Return the ``unpack=`` that probably turns a batch into an (input, target) pair, or other advice."""
    if isinstance(batch, Mapping) and len(batch) > 1:
        keys = list(batch)
        target = next((key for key in keys if str(key).lower() in _TARGETS), keys[-1])
        value = next(key for key in keys if key != target)
        return f"unpack=lambda batch: (batch[{value!r}], batch[{target!r}])"
    if isinstance(batch, (tuple, list)) and len(batch) > 2:
        return "unpack=lambda batch: (batch[0], batch[1]), with the places of input and target in your batches"
    return "a loader that gives pairs, e.g. DataLoader(TensorDataset(inputs, targets)), or unpack=lambda batch: (input, target)"


def _bad_target(number: int, found: str) -> DataError:
    return DataError(
        f"the target of batch {number} is {found}",
        "a tensor with one target for every sample",
        "let the loader give (input, target) pairs with the target as a tensor",
    )


def _check_finite(inputs: Any, number: int) -> None:
    """Refuse inputs that hold NaN or infinity.

    Args:
        inputs: one batch of inputs.
        number: number of the batch from 1, for messages.

    Raises:
        DataError: a tensor in it is not finite.
    """
    for tensor in map(_stored, tensors_in(inputs)):
        if (tensor.is_floating_point() or tensor.is_complex()) and not bool(torch.isfinite(tensor).all()):
            bad = int((~torch.isfinite(tensor)).sum())
            raise DataError(
                f"batch {number} holds {bad} NaN or infinite input values",
                "finite inputs",
                "clean the data first, e.g. with torch.nan_to_num(inputs)",
            )


def _stored(tensor: Tensor) -> Tensor:
    """Return the values that a tensor holds in memory: those of a sparse one that are not zero."""
    if tensor.layout is torch.strided:
        return tensor
    return tensor.coalesce().values() if tensor.layout is torch.sparse_coo else tensor.values()


def few_samples(inputs: Any, batch: int, run: Callable[[Any], Any], keep: int = INSPECTED) -> Any:
    """Return the first samples of a batch, on which a net can be inspected at a fraction of the cost.

    The whole batch comes back if its batch axis is unclear, or if the net fails on fewer samples.

    Args:
        inputs: one batch of inputs.
        batch: number of samples B in it.
        run: runs the net on inputs; a net for one batch size raises, or returns its usual shape.
        keep: number of samples to keep.
    """
    few, count = cut(inputs, batch, keep)
    if few is inputs:
        return inputs
    try:
        returned = list(tensors_in(run(few)))
    except Exception:  # whatever a forward made for one batch size may raise
        return inputs
    return few if returned and all(count in value.shape for value in returned if value.ndim > 0) else inputs


def cut(inputs: Any, batch: int, keep: int = INSPECTED) -> tuple[Any, int]:
    """Return the first ``keep`` samples of a batch of ``batch`` and their number; the whole batch if its axis is unclear."""
    axis = batch_axis(inputs, batch)
    if axis is None or batch <= keep:
        return inputs, batch
    return map_tensors(lambda value: value.narrow(axis, 0, keep), inputs), keep


def batch_axis(inputs: Any, batch: int) -> int | None:
    """Return the axis of ``batch`` samples, 0 or 1, the same for all tensors of the inputs.

    None if neither axis has that length, if both have, or if a tensor is sparse.
    """
    tensors = list(tensors_in(inputs))
    # Of two axes of the same length, either could be time.
    clear = all(t.layout is torch.strided and (t.ndim < 2 or t.shape[0] != t.shape[1]) for t in tensors)
    axes = [axis for axis in (0, 1) if all(t.ndim > axis and t.shape[axis] == batch for t in tensors)]
    return axes[0] if tensors and clear and axes else None
