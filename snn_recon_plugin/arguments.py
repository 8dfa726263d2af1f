"""Checks of the arguments of public classes."""

from __future__ import annotations

import math

from .errors import OptionError

__all__ = ["one_of", "share", "whole"]


def one_of(name: str, value: str, valid: tuple[str, ...]) -> str:
    """Return a value that is one of the valid names, or raise an OptionError."""
    if value not in valid:
        raise OptionError(f"{name}={value!r}", f"one of {list(valid)}", f"pass {name}={valid[0]!r}")
    return value


def whole(name: str, value: int, least: int, most: float = math.inf) -> int:
    """Return a whole number within limits, or raise an OptionError."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        limits = f"at least {least}" if most == math.inf else f"from {least} to {most}"
        raise OptionError(f"{name}={value!r}", f"a whole number, {limits}", f"pass {name}={least}")
    return value


def share(name: str, value: float, most: float, usual: float) -> float:
    """Return a number above 0 and at most ``most``, or raise an OptionError."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= most:
        raise OptionError(f"{name}={value!r}", f"a share above 0, up to {most:g}", f"pass {name}={usual}")
    return float(value)
