"""Checks of arguments that solvers share.  Each raises an error of this package."""

from __future__ import annotations

import math
from numbers import Real

from torch import Tensor

from ..errors import OptionError

__all__ = ["checked_bound", "checked_start", "checked_time_limit", "positive_number"]


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


def checked_start(start: tuple[Tensor, Tensor] | None, outputs: int, features: int) -> tuple[Tensor, Tensor] | None:
    """Return a start (W, b) of shapes (outputs, features) and (outputs,), or None."""
    if start is None:
        return None
    weight, bias = start
    if weight.shape != (outputs, features) or bias.shape != (outputs,):
        raise OptionError(
            f"a start with a weight of shape {tuple(weight.shape)} and a bias of shape {tuple(bias.shape)}",
            f"shapes ({outputs}, {features}) and ({outputs},), one row for each output",
            "pass the solution of a program with as many outputs and features, or start=None",
        )
    return start
