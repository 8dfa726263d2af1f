"""What is evaluated in place of the trained network: its running average, a refitted readout, or what was evaluated before."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from torch import nn

from ..report import Report
from .average import Average
from .best import Best, can_be_held
from .judge import Judged
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
        self.held = False  # whether what was evaluated before is shown in place of what came after it
        self._best: Best | None = None
        self._loan: Loan | None = None
        self._final: Loan | None = None  # what stays after training; a checkpoint may still be saved
        self._resumed: dict[str, Any] = {}

    def begin(self, module: nn.Module, net: nn.Module) -> None:
        """Training begins from the network as it is, or goes on from a checkpoint."""
        if self.decay is not None:
            self.average = Average(self.decay, net)
            if self._resumed.get("average"):
                self.average.restore(module, self._resumed["average"], self._resumed["points"])
            if self._resumed.get("best"):
                self._best = Best.of_checkpoint(module, self._resumed["best"], self._resumed["judged"])
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

    @property
    def best(self) -> Judged | None:
        """What the judge said of the best that was evaluated so far; None where nothing is held."""
        return None if self._best is None else self._best.judged

    def hold(self, net: nn.Module, judged: Judged | None) -> None:
        """What is in the network is evaluated, or the best that was before, where it is clearly better; all parameters are lent.

        Args:
            net: the network.
            judged: what the judge says of it as it is; None for nothing that could be compared, and nothing is held then.
        """
        self.held = False
        if self.decay is None or judged is None or not can_be_held(net):
            self._best = None
        elif self._best is None:
            self._best = None if math.isnan(judged.value) else Best(net.parameters(), judged)
        elif self._best.beats(judged):
            self.held = True
            self._best.show()
        else:
            self._best.follow(judged)

    def glimpse(self, net: nn.Module) -> None:
        """Shows what was held, or the average, where it was better when it was last asked, unless something is shown already."""
        if self.average is None or self._loan is not None or not (self.held or self.better):
            return
        self.lend(net.parameters())
        if self.held and self._best is not None:
            self._best.show()
        else:
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

    def forget(self) -> None:
        """What is in the network now comes from elsewhere: nothing goes beside it into a checkpoint."""
        self.average = self._best = self._loan = self._final = None

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
            found |= {"average": values, "points": self.average.points, "better": self.better, "held": self.held}
        if self._best is not None:
            found["best"] = named(module, zip(self._best.parameters, self._best.values, strict=True))
            found["judged"] = list(self._best.judged)
        return found

    def restore(self, found: dict[str, Any]) -> None:
        """Reads what ``checkpoint`` gave; ``resume`` and ``begin`` make use of it."""
        self._resumed, self.better, self.held = found, bool(found.get("better", False)), bool(found.get("held", False))
