"""What a net returns, and the decoders that turn values over time into scores."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from ..errors import NetworkError
from .structures import describe

__all__ = [
    "LINEAR_READOUTS",
    "READOUTS",
    "agree",
    "as_tensor",
    "decode",
    "output_items",
    "step_weights",
    "unknown_output",
]

READOUTS = ("membrane_mean", "membrane_sum", "membrane_last")
LINEAR_READOUTS = ("linear_mean", "linear_sum", "linear_last")


def output_items(returned: Any) -> Iterator[tuple[int | str | None, Tensor]]:
    """Yield what may hold the scores: the whole output, or an item of it, lists of steps stacked.

    Args:
        returned: what the net's forward returned.

    Yields:
        The index or key of the item, None for the whole output, and its tensor.
    """
    whole = as_tensor(returned)
    if whole is not None:
        yield None, whole
    if isinstance(returned, Mapping):
        pairs: list[tuple[Any, Any]] = list(returned.items())
    elif isinstance(returned, (tuple, list)):
        pairs = list(enumerate(returned))
    else:
        return
    for index, item in pairs:
        value = as_tensor(item)
        if value is not None:
            yield index, value


def as_tensor(item: Any) -> Tensor | None:
    """Read an item of a net's output.

    Args:
        item: the item.

    Returns:
        A tensor as it is, a list of equal tensors, one a step, stacked; None for anything else.
    """
    if isinstance(item, Tensor):
        return item
    if not isinstance(item, (tuple, list)) or not item or not all(isinstance(step, Tensor) for step in item):
        return None
    equal = all(step.shape == item[0].shape for step in item)
    return torch.stack(list(item)) if equal else None


def decode(kind: str, values: Tensor) -> Tensor:
    """Turn values over time into scores.

    Args:
        kind: a readout kind, which ends in mean, sum or last.
        values: ``[T, B, C]``.

    Returns:
        ``[B, C]``.
    """
    if kind.endswith("mean"):
        return values.mean(0)
    return values.sum(0) if kind.endswith("sum") else values[-1]


def step_weights(kind: str, steps: int) -> Tensor:
    """Give the weight that a decoder puts on each step.

    Args:
        kind: as for :func:`decode`.
        steps: how many steps, T.

    Returns:
        ``[T]`` float64.
    """
    if kind.endswith("last"):
        weights = torch.zeros(steps, dtype=torch.float64)
        weights[-1] = 1.0
        return weights
    return torch.full((steps,), 1.0 / steps if kind.endswith("mean") else 1.0, dtype=torch.float64)


def agree(left: Tensor, right: Tensor) -> bool:
    """Say whether two tensors hold the same values up to the rounding of single precision.

    Args:
        left: any tensor.
        right: the tensor whose largest magnitude sets the scale.

    Returns:
        False also where the shapes differ.
    """
    if left.shape != right.shape:
        return False
    scale = max(float(right.abs().max()), 1e-12)
    return float((left.double() - right.double()).abs().max()) <= 1e-4 * scale


def unknown_output(returned: Any, shape: torch.Size | None = None, kinds: tuple[str, ...] = READOUTS) -> NetworkError:
    """Build the error for an output that no known readout explains.

    Args:
        returned: the output.
        shape: T, B and C, where they are known.
        kinds: the readout kinds that were tried.

    Returns:
        The error, to be raised.
    """
    known = "[time, batch, classes], [batch, time, classes] or [batch, classes]"
    if shape is not None:
        steps, batch, classes = shape
        known = f"[{steps}, {batch}, {classes}] or [{batch}, {steps}, {classes}] over time, or [{batch}, {classes}]"
    return NetworkError(
        f"a net that returns {describe(returned)}, whose values are none of {', '.join(kinds)} of the output layer",
        f"the output layer's membranes or currents over time, or their mean, sum or last step: {known}",
        "return the recorded membranes from forward, without softmax or other steps after them; a net with its time "
        "loop inside takes no over_time",
    )
