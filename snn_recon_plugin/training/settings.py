"""The options of a run, as ``ReconstructionCallback`` documents and checks them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from ..initializer import ConvexInitializer
from ..pipeline import Unpack

__all__ = ["AUTO", "HELD_OUT", "REFIT_COST", "REFIT_TOL", "VALIDATION", "Settings"]

AUTO = "auto"
HELD_OUT = "held_out"
VALIDATION = "validation"
REFIT_TOL = 1e-4  # relative gap of a refit: held-out losses show no smaller difference, and hidden layers move anyway
REFIT_COST = 0.5  # epochs of training that the program of a refit may cost


@dataclass(frozen=True)
class Settings:
    """The callback's arguments of the same names."""

    initializer: ConvexInitializer
    at_start: bool
    every_n_epochs: int
    at_end: bool
    keep: str
    judge: str | Callable[[Any], Any]
    swap: str
    dataloader: Iterable[Any] | None
    unpack: Unpack | None
    max_share: float
    protect: bool
    average: float | None

    @property
    def overwrites(self) -> bool:
        """Return whether training goes on from what was refitted."""
        return self.swap == "overwrite"

    @property
    def decay(self) -> float | None:
        """Return the decay of the weight average; None without one, which training from refits has no use for."""
        return None if self.overwrites else self.average
