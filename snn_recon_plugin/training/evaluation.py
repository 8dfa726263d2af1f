"""What is evaluated in place of the trained network: its running average, a refitted readout, or both."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from ..report import Report
from .average import Average
from .loan import Loan, named

__all__ = ["Evaluation"]


class Evaluation:
    """Lends the network other values from the end of an epoch until training goes on, and for good when it has ended.

    Args:
        decay: of the average; None for none.
    """

    def __init__(self, decay: float | None) -> None:
        self.decay = decay
        self.average: Average | None = None
        self.better = False  # whether the average was better than what training had come to, when that was last asked
        self._loan: Loan | None = None
        self._final: Loan | None = None  # what stays after training; a checkpoint may still be saved
        self._resumed: dict[str, Any] = {}

    def begin(self, module: nn.Module, net: nn.Module) -> None:
        """Training begins from the network as it is, or goes on from a checkpoint."""
        if self.decay is not None:
            self.average = Average(self.decay, net)
            if self._resumed.get("average"):
                self.average.restore(module, self._resumed["average"], self._resumed["points"])
        self._resumed = {}

    def resume(self, module: nn.Module) -> None:
        """The values that come back when training goes on are those of the checkpoint."""
        if self._resumed.get("trained"):
            self._loan = Loan.of_checkpoint(module, self._resumed["trained"])

    @property
    def moved(self) -> bool:
        """Whether there is an average, of more than the point that it began with."""
        return self.average is not None and self.average.points > 1

    def follow(self) -> None:
        """The optimizer has stepped."""
        if self.average is not None:
            self.average.follow()

    def glimpse(self, net: nn.Module) -> None:
        """Shows the average, where it was better when it was last asked, unless something is shown already."""
        if self.average is not None and self.better and self._loan is None:
            self.lend(net.parameters())
            self.average.show()

    def lend(self, parameters: Iterable[nn.Parameter]) -> None:
        """Ahead of a write to (some of) these: an interrupt from here on gives the trained values back."""
        self.end()
        self._loan = Loan.of(parameters)

    def take_back(self) -> None:
        """The trained values are in the network again, and more may be written."""
        if self._loan is not None:
            self._loan.end()

    def keep(self, report: Report) -> None:
        """What was refitted stays until training goes on."""
        if self._loan is not None:
            self._loan.report = report

    def give(self) -> None:
        """What is in the network is training's from now on."""
        self._loan = None

    def end(self) -> None:
        """The trained values come back."""
        self.take_back()
        self._loan = None

    def finish(self) -> None:
        """Training has ended; what was lent stays."""
        self._final, self._loan = self._loan, None

    def checkpoint(self, module: nn.Module) -> dict[str, Any]:
        """What a checkpoint needs beside the weights, by their names in ``module``; empty where they say it all."""
        if self._resumed:  # training has not begun again yet
            return dict(self._resumed)
        loan = self._loan or self._final
        found: dict[str, Any] = {}
        if loan is not None:
            found["trained"] = named(module, loan.trained)
        if self.average is not None:
            values = named(module, zip(self.average.parameters, self.average.values, strict=True))
            found |= {"average": values, "points": self.average.points, "better": self.better}
        return found

    def restore(self, found: dict[str, Any]) -> None:
        """Reads what ``checkpoint`` gave; ``resume`` and ``begin`` make use of it."""
        self._resumed, self.better = found, bool(found.get("better", False))
