"""Max pooling without overlap as maxima of slices: to the same values, in a tenth of a CPU's time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

_POOLS: dict[Callable[..., Any], int] = {  # positional axes of each function
    functional.max_pool1d: 1,
    functional.max_pool2d: 2,
    functional.max_pool3d: 3,
}


class FastPools(TorchFunctionMode):
    """Context in which torch's max pooling of CPU tensors runs faster without gradients, as a module or as a function."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        axes = _POOLS.get(func)
        pooled = None if axes is None or torch.is_grad_enabled() else _pool(axes, *args, **(kwargs or {}))
        return func(*args, **(kwargs or {})) if pooled is None else pooled


def _pool(axes: int, input: Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0, **options: Any) -> Tensor | None:
    """Return the pooled input; None if windows overlap, leave gaps or are padded."""
    sizes = (kernel_size,) * axes if isinstance(kernel_size, int) else tuple(kernel_size)
    strides = (stride,) * axes if isinstance(stride, int) else tuple(stride or sizes)
    plain = options.get("dilation", 1) in (1, (1,) * axes) and not (options.get("ceil_mode") or options.get("return_indices"))
    gathers = sizes == strides and padding in (0, (0,) * axes) and max(sizes) > 1
    if not (plain and gathers and input.device.type == "cpu" and input.is_floating_point()):
        return None
    for axis, size in enumerate(sizes, start=input.dim() - axes):  # rows first: a slice of rows is contiguous
        if input.shape[axis] < size:
            return None
        parts = [_every(input, axis, first, size) for first in range(size)]
        input = parts[0]
        for part in parts[1:]:
            input = torch.maximum(input, part)
    return input


def _every(values: Tensor, axis: int, first: int, size: int) -> Tensor:
    """Return every ``size``-th slice of an axis from the ``first``, of the windows that are whole."""
    whole = values.shape[axis] // size
    index = [slice(None)] * values.dim()
    index[axis] = slice(first, whole * size, size)
    return values[tuple(index)]
