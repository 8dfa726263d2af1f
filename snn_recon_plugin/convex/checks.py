"""Checks of arguments, features and labels; each raises an error of this package."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import REMOVED, DataError, OptionError, closest

_IGNORED = -100  # torch's default ignore_index


def plain_number(value: Any) -> Any:
    """Return the Python number in a NumPy scalar or in a tensor without axes; anything else as it is."""
    scalar = isinstance(value, np.generic) or (isinstance(value, Tensor) and value.ndim == 0)
    return value.item() if scalar else value


def _real(value: object) -> float:
    """Return a real number (of Python or NumPy) as a float, and NaN for anything else."""
    return float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan


def positive_number(name: str, value: object, fix: str, needed: str = "a positive number") -> float:
    """Return ``value`` as a float if it is a positive finite real number, or raise an OptionError."""
    if not 0 < _real(value) < math.inf:
        raise OptionError(f"{name}={value!r}", needed, fix)
    return _real(value)


def check_name(option: str, name: object, valid: Sequence[str], usual: str) -> None:
    """Refuse an unknown name by an OptionError with the name to type."""
    if name not in valid:
        fix = REMOVED.get(f"{option}={name}", f"pass {option}={closest(name, valid) or usual!r}")
        raise OptionError(f"{option}={name!r}", f"one of {list(valid)}", fix)


def checked_bound(name: str, value: object, *, may_be_zero: bool = False) -> float:
    """Return a positive number, or zero if allowed; infinity means no bound."""
    if not (_real(value) > 0 or (may_be_zero and _real(value) == 0)):
        needed = f"{'zero or ' if may_be_zero else ''}a positive number, or math.inf for no bound"
        raise OptionError(f"{name}={value!r}", needed, f"pass {name}=math.inf")
    return _real(value)


def as_column(value: float | Tensor, name: str, matrix: Tensor) -> Tensor:
    """Return a number for each row of the matrix, (n,) float64, from one number or (n,) of them."""
    column = torch.as_tensor(value, dtype=torch.float64, device=matrix.device).detach()
    if column.dim() == 0:
        column = column.expand(len(matrix)).contiguous()
    if column.shape != (len(matrix),) or not bool(torch.isfinite(column).all()):
        found, fix = f"{name} of shape {tuple(column.shape)}", f"pass {name} as a float or as a tensor of shape ({len(matrix)},)"
        raise DataError(found, f"a finite number, or {len(matrix)} of them, one a sample", fix)
    return column


def check_tensor(value: object, name: str) -> None:
    """Refuse anything but a dense torch tensor."""
    if not isinstance(value, Tensor):
        raise DataError(f"{name} of type {type(value).__name__}", "a torch tensor", f"pass torch.as_tensor({name})")
    if value.layout is not torch.strided:
        raise DataError(f"sparse {name}", "a dense tensor", f"pass {name}.to_dense()")


def check_matrix(matrix: Tensor, *, may_be_empty: bool = False) -> None:
    """Refuse features that are no matrix of finite real numbers."""
    check_tensor(matrix, "features")
    if matrix.dim() != 2 or 0 in matrix.shape[1 if may_be_empty else 0 :]:
        found = f"features of shape {tuple(matrix.shape)}"
        raise DataError(found, "a matrix (samples, features), both at least 1", "check the data")
    if matrix.is_complex():
        raise DataError("complex features", "real features", "pass real and imaginary parts as two features")
    if matrix.is_floating_point() and not math.isfinite(matrix.detach().sum()):  # 20 times as fast as a count
        bad = int((~torch.isfinite(matrix)).sum())
        if bad:  # large finite values may also add up to infinity
            raise DataError(f"{bad} features that are NaN or infinite", "finite features", "clean the inputs")


def class_indices(targets: Tensor, num_classes: int) -> Tensor:
    """Check class indices: one-dimensional, of an integer dtype, within 0 .. num_classes - 1; return them as int64."""
    if targets.dim() != 1:
        needed = "one class index a sample, shape (samples,)"
        raise DataError(f"labels of shape {tuple(targets.shape)}", needed, _shape_fix(targets, num_classes))
    if targets.is_floating_point() or targets.is_complex():
        values = targets.is_floating_point() and bool((targets != targets.round()).any())
        fix = "pass loss=nn.MSELoss() for values" if values else "convert them with labels.long()"
        raise DataError(f"labels of dtype {targets.dtype}", "integer class indices", fix)
    indices = targets.long()
    least, most = (int(indices.min()), int(indices.max())) if len(indices) else (0, 0)
    needed = f"class indices from 0 to {num_classes - 1}"
    if least == _IGNORED:
        fix = "pass loss=nn.CrossEntropyLoss(), which leaves them out"
        raise DataError(f"labels of {_IGNORED}, which torch's losses ignore", needed, fix)
    if least < 0 or most >= num_classes:
        fix = (
            "renumber the labels from 0, or build a readout with one output for each class; classes=, if given, counts all of them"
        )
        raise DataError(f"labels from {least} to {most}", f"{needed}, as the readout has {num_classes} classes", fix)
    return indices


def _shape_fix(targets: Tensor, num_classes: int) -> str:
    if targets.shape[1:] == (1,):
        return "drop the second axis with labels.squeeze(1)"
    indicators = targets.dim() == 2 and bool(((targets == 0) | (targets == 1)).all())
    if indicators and bool((targets.sum(1) == 1).all()):
        return "turn one-hot labels into indices with labels.argmax(1)"
    if indicators and targets.shape[1] == num_classes:
        return "pass loss=nn.BCEWithLogitsLoss(), for several classes a sample"
    if targets.is_floating_point():
        return "pass loss=nn.MSELoss() for values, or labels.argmax(1) for probabilities"
    return "pass the index of one class a sample"


def one_hot(targets: Tensor, num_outputs: int) -> Tensor:
    """Return class indices as 0 or 1 of shape (n, C); for one output, labels 0 and 1 as they are."""
    indices = class_indices(targets, max(num_outputs, 2))[:, None]
    if num_outputs == 1:
        return indices.double()
    return torch.zeros(num_outputs, len(indices), dtype=torch.float64, device=targets.device).T.scatter_(1, indices, 1.0)
