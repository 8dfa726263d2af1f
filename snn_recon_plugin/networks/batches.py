"""What comes out of a user's loader, checked before it goes into the net."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import DataError
from .structures import describe, map_tensors, tensors_in

__all__ = ["INSPECTED", "batch_axis", "check_finite", "cut", "device_of", "few_samples", "split_batch", "unpack_of"]

# Names under which data sets that give dictionaries keep labels.
_TARGETS = ("label", "labels", "target", "targets", "y", "class", "classes")
INSPECTED = 8  # samples that a net is inspected on


def device_of(net: nn.Module) -> torch.device:
    """Give the device of a net's first parameter; the CPU for a net without any."""
    for parameter in net.parameters():
        return parameter.device
    return torch.device("cpu")


def split_batch(batch: Any, number: int) -> tuple[Any, Tensor]:
    """Take an (input, target) pair apart.

    Args:
        batch: what the loader gave.
        number: which batch it is, the first being 1; for messages.

    Returns:
        The inputs as they are, and the targets as a tensor with at least one axis.

    Raises:
        DataError: if it isn't a pair, or the target isn't a tensor or a list of numbers.
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
    """Write the ``unpack=`` that probably takes a batch to its (input, target) pair, or what else to do."""
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


def check_finite(inputs: Any, number: int) -> None:
    """Refuse inputs that hold NaN or infinity.

    Args:
        inputs: one batch of inputs.
        number: which batch it is, the first being 1; for messages.

    Raises:
        DataError: if a tensor in it is not finite.
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
    """Give the values that a tensor holds in memory, which of a sparse one are those that are not zero."""
    if tensor.layout is torch.strided:
        return tensor
    return tensor.coalesce().values() if tensor.layout is torch.sparse_coo else tensor.values()


def few_samples(inputs: Any, batch: int, run: Callable[[Any], Any], keep: int = INSPECTED) -> Any:
    """Cut a batch down to a few samples, on which a net can be inspected at a fraction of the cost.

    Args:
        inputs: one batch of inputs.
        batch: how many samples it holds, B.
        run: runs the net on inputs; a net that takes no smaller batch raises, or returns what it always does.
        keep: how many samples to keep.

    Returns:
        The inputs' first samples; the inputs as they are where the batch axis can't be told, or the net fails on fewer.
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
    """Take the first samples of a batch where shapes say which axis is the batch's.

    Args:
        inputs: one batch of inputs.
        batch: how many samples it holds, B.
        keep: how many samples to keep.

    Returns:
        The inputs' first samples and their number; the inputs as they are, and ``batch``, where the batch axis can't be told.
    """
    axis = batch_axis(inputs, batch)
    if axis is None or batch <= keep:
        return inputs, batch
    return map_tensors(lambda value: value.narrow(axis, 0, keep), inputs), keep


def batch_axis(inputs: Any, batch: int) -> int | None:
    """Tell the axis of samples by its length.

    Args:
        inputs: one batch of inputs.
        batch: how many samples it holds, B.

    Returns:
        0 or 1, the same for all tensors; None where neither is B long, or both are, or a tensor is sparse.
    """
    tensors = list(tensors_in(inputs))
    # Where two axes are of the same length either could be time.
    clear = all(t.layout is torch.strided and (t.ndim < 2 or t.shape[0] != t.shape[1]) for t in tensors)
    axes = [axis for axis in (0, 1) if all(t.ndim > axis and t.shape[axis] == batch for t in tensors)]
    return axes[0] if tensors and clear and axes else None
