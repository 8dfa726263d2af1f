"""Functions of torch over all time steps at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Shape = tuple[int, ...]

# Functions of samples, by their axes: one batch holds the samples of all steps.
_AXES = {"1d": 3, "2d": 4, "3d": 5}
_KINDS = ("conv", "max_pool", "avg_pool", "adaptive_max_pool", "adaptive_avg_pool")
_OF_SAMPLES: dict[str, int | None] = {f"{kind}{axes}": rank for kind in _KINDS for axes, rank in _AXES.items()}
_OF_SAMPLES |= {"linear": None, "matmul": None, "mm": None, "__matmul__": None, "layer_norm": None, "group_norm": None}
_OF_SAMPLES |= {"batch_norm": None, "instance_norm": None}
# Functions of single numbers.
_POINTWISE = {"relu", "relu_", "leaky_relu", "sigmoid", "tanh", "abs", "neg", "exp", "clamp", "dropout", "clone", "detach", "float"}
_POINTWISE |= {"add", "sub", "mul", "div", "true_divide", "rsub", "gt", "ge", "lt", "le", "maximum", "minimum", "where", "square"}
_POINTWISE |= {f"__{name}__" for name in ("add", "radd", "sub", "rsub", "mul", "rmul", "truediv", "neg", "gt", "ge", "lt", "le")}
# Functions that give the same numbers another shape.
_RESHAPES = {"flatten", "reshape", "view", "squeeze", "unsqueeze", "unflatten", "contiguous"}
_LIMIT = 2**22  # bytes of a convolution's input: larger ones leave a processor's cache (benchmarks/studies/steps.py)


def over_steps(
    function: Callable[..., Any], stepped: list[Shape], fixed: list[Shape], made: Shape, leads: bool
) -> Callable[..., Tensor] | None:
    """Return the function of all steps; None if it has to run step by step.

    Args:
        function: of torch.
        stepped: shapes of the tensors among its arguments that are of one step.
        fixed: shapes of the others, which all steps share.
        made: shape of its output.
        leads: its first argument is of one step.

    Returns:
        A function with the same arguments, where tensors ``[T, *shape]`` stand in place of those of one step.
    """
    name, shape = str(getattr(function, "__name__", "")), stepped[0] if stepped else ()
    if not stepped or len(shape) < 1:
        return None
    if name in _RESHAPES and leads:
        return lambda x, *args, **kwargs: x.reshape(len(x), *made)
    if name in _POINTWISE and all(len(other) == len(shape) for other in stepped) and all(len(f) <= len(shape) for f in fixed):
        return function
    rank = _OF_SAMPLES.get(name, 0)
    if not leads or len(stepped) > 1 or made[:1] != shape[:1] or rank == 0 or (rank or len(shape)) != len(shape) or len(shape) < 2:
        return None

    def of_samples(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        result: Tensor = function(x.flatten(0, 1), *args, **kwargs)
        return result.view(*x.shape[:2], *result.shape[1:])

    return of_samples if rank is None else _in_parts(of_samples)


def _in_parts(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return a function of all steps that takes as many at once as a processor's cache holds."""

    def over(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        steps = max(1, _LIMIT // max(1, x[0].numel() * x.element_size()))
        if steps >= len(x) or x.device.type != "cpu":
            return function(x, *args, **kwargs)
        return torch.cat([function(part, *args, **kwargs) for part in torch.split(x, steps)])

    return over
