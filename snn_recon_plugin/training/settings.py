"""The options of a run, as ``ReconstructionCallback`` documents and checks them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..errors import OptionError
from ..initializer import ConvexInitializer
from ..pipeline import Options, one_of, share, truth, whole

AUTO = "auto"
HELD_OUT = "held_out"
VALIDATION = "validation"
REFIT_TOL = 1e-4  # relative gap of a refit: held-out losses show no smaller difference, and hidden layers move anyway
REFIT_COST = 0.5  # epochs of training that the program of a refit may cost


def refit_options(options: Options) -> Options:
    """Return the options of a refit for those of a start."""
    return replace(options, hidden="keep", tol=max(options.tol, REFIT_TOL), max_cost=min(options.max_cost, REFIT_COST))


@dataclass(frozen=True)
class Settings:
    """The callback's arguments of the same names, checked when they are made."""

    initializer: ConvexInitializer
    at_start: bool
    every_n_epochs: int
    at_end: bool
    keep: str
    judge: str | Callable[[Any], Any]
    net: str | None
    dataloader: Iterable[Any] | None
    max_share: float
    protect: bool
    average: float | None

    def __post_init__(self) -> None:
        if not isinstance(self.initializer, ConvexInitializer):
            found = f"initializer of type {type(self.initializer).__name__}"
            raise OptionError(found, "a ConvexInitializer", "pass ReconstructionCallback(ConvexInitializer(...))")
        whole("every_n_epochs", self.every_n_epochs, 0)
        one_of("keep", self.keep, ("if_better", "always"))
        share("max_share", self.max_share, 10.0, 0.1)
        for name in ("at_start", "at_end", "protect"):
            truth(name, getattr(self, name), True)
        if self.average is not None:
            share("average", self.average, 1.0, 0.99)
        if not callable(self.judge):
            one_of("judge", self.judge, (AUTO, HELD_OUT, VALIDATION))

    def labelled(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """Return metrics by the names that loggers show; those of a named network have its name in theirs."""
        prefix = "recon/" if self.net is None else f"recon/{self.net}/"
        return {prefix + name: value for name, value in metrics.items()}
