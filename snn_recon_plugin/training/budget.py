"""When a refit may come, told from the length of the run alone.

Seconds are not asked: a refit that depended on them would not be the same when the run is repeated, or resumed.  A refit on a
part of the samples is hardly worth its while (docs/decisions.md), so the budget buys whole ones, and the sooner the better:
what it allows grows with the square root of the epochs done.  What a start takes is made up for by refits in between, which do less
than those after the first epoch and the last.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["COST", "START", "Budget"]

COST = 0.5  # epochs of training that a refit on as many samples as an epoch has takes, on the networks of docs/training.md
START = 2 * COST  # a start, which runs and solves hidden layers too
_LEAST = 0.2  # of the samples; fewer tell less than the training has seen already
_UNKNOWN = 10  # epochs of a run that does not say
_HORIZON = 50  # epochs: of longer runs, which mostly end early, no more is spent ahead than of one as long as this


@dataclass
class Budget:
    """Epochs' worth of work for refits.

    Args:
        share: of the run's epochs, that refits may take in all.
        epochs: of the run; None where it does not say.
        spent: epochs' worth spent so far.
        ahead: epochs' worth that a start took; of refits in between there are so many fewer.
    """

    share: float
    epochs: int | None
    spent: float = 0.0
    ahead: float = 0.0

    def take(self, done: int, last: bool = False) -> float:
        """The share of the samples that a refit may use now; it is then spent.

        Args:
            done: epochs done.
            last: whether it is the run's last refit, which makes do with what is left.

        Returns:
            1, or 0 where too little is left; for the last refit anything in between.
        """
        epochs = max(self.epochs or max(_UNKNOWN, done), 1)
        horizon = min(epochs, _HORIZON)
        allowed = self.share * (epochs if last else max(done, math.sqrt(done * horizon)))
        left = allowed - self.spent - (0.0 if last else self.ahead)
        first = self.spent == 0 and self.share * horizon >= COST
        part = 1.0 if first or left >= COST else max(0.0, left) / COST
        if part < 1 and (not last or part < _LEAST):
            return 0.0
        self.spent += COST * part
        return part
