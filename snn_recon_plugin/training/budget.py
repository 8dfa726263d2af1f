"""When a refit may look at how many samples, told from the length of the run alone.

Seconds are not asked: a refit that depended on them would not be the same when the run is repeated, or resumed.  A refit on a
part of the samples is hardly worth its while (docs/decisions.md), so the budget buys whole ones, and the sooner the better:
what it allows grows with the square root of the epochs done.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["COST", "Budget"]

COST = 0.5  # epochs of training that a refit on as many samples as an epoch has takes, on the networks of docs/benchmarks.md
_LEAST = 500  # samples; fewer tell less than the training has seen already
_UNKNOWN = 10  # epochs of a run that does not say


@dataclass
class Budget:
    """Epochs' worth of work for refits.

    Args:
        share: of the run's epochs, that refits may take in all.
        epochs: of the run; None where it does not say.
        samples: of an epoch.
        spent: epochs' worth spent so far.
    """

    share: float
    epochs: int | None
    samples: int
    spent: float = 0.0

    def take(self, done: int, last: bool = False) -> int:
        """How many samples a refit may use now; they are then spent.

        Args:
            done: epochs done.
            last: whether it is the run's last refit, which makes do with what is left.

        Returns:
            All, or 0 where too little is left; for the last refit any number in between.
        """
        epochs = max(self.epochs or max(_UNKNOWN, done), 1)
        total = self.share * epochs
        left = total - self.spent if last else total * math.sqrt(min(1.0, done / epochs)) - self.spent
        first = self.spent == 0 and total >= COST
        count = self.samples if first or left >= COST else int(max(0.0, left) / COST * self.samples)
        if count < self.samples and (not last or count < _LEAST):
            return 0
        self.spent += COST * count / max(1, self.samples)
        return count
