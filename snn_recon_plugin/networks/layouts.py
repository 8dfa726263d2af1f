"""In which order a layer sees time and batch, and how its calls are brought to ``[T, B, *]``."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["LAYOUTS", "fits", "time_first"]

# One call for each step with [B, *]; or a single call, with time and batch in either order, on two axes or folded into one.
LAYOUTS = ("steps", "time_first", "batch_first", "folded", "folded_batch_first")


def fits(layout: str, shapes: Sequence[torch.Size], num_steps: int, batch: int) -> bool:
    """Say whether the calls of a layer could be of a layout.

    Args:
        layout: one of :data:`LAYOUTS`.
        shapes: the shape of what entered the layer at each call; features on the last axis.
        num_steps: how many steps there are, T.
        batch: how many samples there are, B.

    Returns:
        False where the number of calls, of axes, of steps or of samples says otherwise.
    """
    rank, leading = len(shapes[0]), tuple(shapes[0][:-1])
    if layout == "steps":
        return len(shapes) == num_steps and rank == 2
    if len(shapes) != 1:
        return False
    if layout.startswith("folded"):
        return num_steps > 1 and leading == (num_steps * batch,)
    return leading == ((num_steps, batch) if layout == "time_first" else (batch, num_steps))


def time_first(layout: str, calls: Sequence[Tensor], num_steps: int) -> Tensor:
    """Join what all calls of a layer saw, or gave.

    Args:
        layout: one of :data:`LAYOUTS`.
        calls: one tensor for each call.
        num_steps: how many steps there are, T.

    Returns:
        ``[T, B, *]``.
    """
    if layout == "steps":
        return torch.stack(list(calls))
    (value,) = calls
    if layout == "batch_first":
        return value.movedim(1, 0)
    if layout == "folded":
        return value.reshape(num_steps, -1, *value.shape[1:])
    return value.reshape(-1, num_steps, *value.shape[1:]).movedim(1, 0) if layout == "folded_batch_first" else value
