"""The options of a run, as ``ReconstructionCallback`` documents and checks them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from ..errors import OptionError
from ..options import ALWAYS, Options, check_bool, check_fraction

REFIT_TOL = 1e-4  # relative gap of a refit: held-out losses show no smaller difference, and hidden layers move anyway
REFIT_COST = 1.0  # epochs of training that the program of a refit may cost


def refit_options(options: Options, write: str = ALWAYS) -> Options:
    """Return the options of a refit for those of a start."""
    cost = min(options.max_cost, REFIT_COST)
    return replace(options, hidden="keep", tol=max(options.tol, REFIT_TOL), max_cost=cost, write=write)


@dataclass(frozen=True)
class Settings:
    """The callback's arguments of the same names, checked when they are made."""

    initializer: Options
    net: str | None = None
    dataloader: Iterable[Any] | None = None
    metric: Callable[[Any], Any] | None = None
    at_start: bool = True
    average: float | None = 0.99
    hard_samples: bool | None = None
    damping: float | None = None
    fast: bool = False

    def __post_init__(self) -> None:
        if self.metric is not None and not callable(self.metric):
            found, fix = f"metric={self.metric!r}", "pass metric=lambda module: ..., less for better"
            raise OptionError(found, "a function metric(module)", fix)
        check_bool("at_start", self.at_start, True)
        check_bool("hard_samples", self.hard_samples, None)
        check_bool("fast", self.fast, False)
        for name, usual in (("average", 0.99), ("damping", 0.5)):
            if getattr(self, name) is not None:
                check_fraction(name, getattr(self, name), 1.0, usual)
