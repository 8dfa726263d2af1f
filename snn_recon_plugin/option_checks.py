"""Checks of the values of options."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable

from .convex import Penalty, make_penalty
from .convex.checks import plain_number, positive_number
from .convex.path import CHOICES
from .errors import OptionError, closest

# Options of earlier versions, and what to type instead.
_REPLACED = {
    "rounds": "leave it out: all candidates are drawn at once, which does as well",
    "scores": "pass forward=lambda net, inputs: scores(net(inputs)) in its place",
    "unit_parameters": "leave it out: leaks and thresholds that differ between neurons move with the rows",
}


def check_names(names: Iterable[str], valid: Collection[str]) -> None:
    """Raise an OptionError for a name that is no option."""
    for name in names:
        if name not in valid:
            fix = _REPLACED.get(name) or (f"pass {closest(name, valid)}=..." if closest(name, valid) else "leave it out")
            raise OptionError(f"an option {name}", f"one of {', '.join(valid)}", fix)


def check_one_of(name: str, value: object, valid: tuple[str, ...]) -> None:
    """Raise an OptionError unless the value is one of the valid names."""
    if value not in valid:
        raise OptionError(f"{name}={value!r}", f"one of {list(valid)}", f"pass {name}={closest(value, valid) or valid[0]!r}")


def check_bool(name: str, value: object, default: bool | None) -> None:
    """Raise an OptionError unless the value is a bool, or the default."""
    if not isinstance(value, bool) and value is not default:
        needed = "None, True or False" if default is None else "True or False"
        raise OptionError(f"{name}={value!r}", needed, f"pass {name}=True")


def check_whole(name: str, value: object, least: int, most: float = math.inf, fix: str = "") -> None:
    """Raise an OptionError unless the value is a whole number from ``least`` to ``most``."""
    value = plain_number(value)
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        limits = f"at least {least}" if most == math.inf else f"from {least} to {most}"
        raise OptionError(f"{name}={value!r}", f"a whole number, {limits}", fix or f"pass {name}={least}")


def check_fraction(name: str, value: object, most: float, example: float) -> None:
    """Raise an OptionError unless 0 < value <= most."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= most:
        raise OptionError(f"{name}={value!r}", f"a share above 0, up to {most:g}", f"pass {name}={example}")


def check_function(name: str, value: object, arguments: str, example: str) -> None:
    """Raise an OptionError unless the value is a function, or None."""
    if value is not None and not callable(value):
        raise OptionError(f"{name}={value!r}", f"a function {name}({arguments})", f"pass {example}")


def check_candidates(name: str, value: object) -> None:
    """Raise an OptionError unless the value is a finite number, at least 1."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not (value >= 1 and math.isfinite(value)):
        needed = "a multiple of the width as a float, or a number as an int, at least 1"
        raise OptionError(f"{name}={value!r}", needed, f"pass {name}=3.0")


def check_penalty(name: str, value: object) -> None:
    """Raise an OptionError for a Penalty object too, whose own settings its name would lose."""
    if isinstance(value, Penalty):
        raise OptionError(f"{name}={value!r}", "a name", f"pass {name}={value.name!r}, or use snn_recon_plugin.convex directly")
    make_penalty(value)  # type: ignore[arg-type]


def check_strength(name: str, value: object) -> None:
    """Raise an OptionError unless the value is a positive number, or a name of a choice."""
    if not (isinstance(value, str) and value in CHOICES):
        positive_number(name, value, f"pass {name}='auto'", "a positive number, 'auto' or 'one_se'")


def check_least(name: str, value: object, least: int, fix: str = "") -> None:
    """Raise an OptionError unless the value is None, or a whole number that is large enough."""
    if value is not None:
        check_whole(name, value, least, fix=fix)
