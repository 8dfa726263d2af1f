"""Checks of arguments, features and labels; each raises an error of this package."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from ..errors import DataError, OptionError

__all__ = [
    "as_column",
    "check_matrix",
    "check_start",
    "checked_bound",
    "checked_time_limit",
    "class_indices",
    "positive_number",
    "signs_of",
]

_IGNORED = -100  # torch's default ignore_index


def positive_number(name: str, value: object, needed: str, fix: str) -> float:
    """Return ``value`` as a float if it is a positive finite real number (of Python or NumPy), or raise an OptionError."""
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 < float(value) < math.inf:
        raise OptionError(f"{name}={value!r}", needed, fix)
    return float(value)


def checked_time_limit(time_limit: float) -> float:
    """Return a number of seconds, zero or more; infinity means no limit."""
    if isinstance(time_limit, bool) or not isinstance(time_limit, Real) or not float(time_limit) >= 0:
        raise OptionError(f"time_limit={time_limit!r}", "a number of seconds, zero or more", "pass time_limit=60.0")
    return float(time_limit)


def checked_bound(name: str, value: object) -> float:
    """Return a positive number; infinity means no bound."""
    if isinstance(value, bool) or not isinstance(value, Real) or not float(value) > 0:
        raise OptionError(f"{name}={value!r}", "a positive number, or math.inf for no bound", f"pass {name}=math.inf")
    return float(value)


def check_start(start: Sequence[Any] | None, outputs: int, features: int) -> None:
    """Refuse a start (W, b) of other shapes than (outputs, features) and (outputs,)."""
    if start is None:
        return
    weight, bias = start[:2]
    if weight.shape != (outputs, features) or bias.shape != (outputs,):
        raise OptionError(
            f"a start with a weight of shape {tuple(weight.shape)} and a bias of shape {tuple(bias.shape)}",
            f"shapes ({outputs}, {features}) and ({outputs},), one row for each output",
            "pass the solution of a program with as many outputs and features, or start=None",
        )


def as_column(value: float | Tensor, name: str, matrix: Tensor) -> Tensor:
    """Return a number for each row of the matrix, (n,) float64, from one number or (n,) of them."""
    column = torch.as_tensor(value, dtype=torch.float64, device=matrix.device)
    if column.dim() == 0:
        column = column.expand(len(matrix)).contiguous()
    if column.shape != (len(matrix),) or not bool(torch.isfinite(column).all()):
        raise DataError(
            f"{name} of shape {tuple(column.shape)}",
            f"a finite number, or {len(matrix)} of them, one a sample",
            f"pass {name} as a float or as a tensor of shape ({len(matrix)},)",
        )
    return column


def check_matrix(matrix: Tensor) -> None:
    """Refuse features that are no matrix of finite real numbers."""
    if matrix.dim() != 2 or 0 in matrix.shape:
        found = f"features of shape {tuple(matrix.shape)}"
        raise DataError(found, "a matrix (samples, features), both at least 1", "check the data")
    if matrix.is_complex():
        raise DataError("complex features", "real features", "pass real and imaginary parts as two features")
    if matrix.is_floating_point() and not math.isfinite(matrix.sum()):  # 20 times as fast as a count
        bad = int((~torch.isfinite(matrix)).sum())
        if bad:  # large finite values may also add up to infinity
            raise DataError(f"{bad} features that are NaN or infinite", "finite features", "clean the inputs")


def class_indices(targets: Tensor, num_classes: int) -> Tensor:
    """Check class indices: one-dimensional, of an integer dtype, within 0 .. num_classes - 1; return them as int64."""
    if targets.dim() != 1:
        raise DataError(
            f"labels of shape {tuple(targets.shape)}",
            "one class index a sample, shape (samples,)",
            "turn one-hot labels into indices with labels.argmax(1)",
        )
    if targets.dtype not in (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool):
        raise DataError(f"labels of dtype {targets.dtype}", "integer class indices", "convert them with labels.long()")
    indices = targets.long()
    if len(indices) and int(indices.min()) == _IGNORED:
        raise DataError(
            f"labels of {_IGNORED}, which torch's losses ignore",
            f"class indices from 0 to {num_classes - 1}",
            "pass loss=nn.CrossEntropyLoss() to leave out whole samples with that label, or leave them out of the loader",
        )
    if len(indices) and (int(indices.min()) < 0 or int(indices.max()) >= num_classes):
        raise DataError(
            f"labels from {int(indices.min())} to {int(indices.max())}",
            f"class indices from 0 to {num_classes - 1}, as the readout has {num_classes} classes",
            "renumber the labels from 0, or build a readout with one output for each class",
        )
    return indices


def signs_of(targets: Tensor, num_outputs: int) -> Tensor:
    """Return class indices or 0/1 indicators as +-1 of shape (n, C)."""
    if targets.dim() == 2 and targets.shape[1] == num_outputs:
        if not bool(((targets == 0) | (targets == 1)).all()):
            raise DataError("label indicators other than 0 and 1", "0 or 1 for each output", "pass class indices instead")
        return targets.double() * 2 - 1
    indices = class_indices(targets, max(num_outputs, 2))
    hot = indices[:, None] if num_outputs == 1 else torch.nn.functional.one_hot(indices, num_outputs)
    return hot.double() * 2 - 1
