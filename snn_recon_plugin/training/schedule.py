"""The decision when a refit is due, from the length of the run alone.

Seconds play no part: a repeated or resumed run must make the same refits.  The budget pays for refits on all samples of an epoch,
since a refit on a part of them is less accurate (docs/evidence/decisions.md).  Early refits help most, so the allowance grows with
the square root of the epochs done.  The start's cost is deducted from the refits between the first and the last one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from .settings import Settings

COST = 0.5  # epochs of training that a refit on all samples takes, on the networks of docs/training.md
START = 2 * COST  # epochs of training that a start takes, which runs and solves hidden layers too
_SMALLEST_SHARE = 0.2  # smallest share of the samples for a last refit; on fewer it rarely beats the trained readout
_UNKNOWN = 10  # epochs assumed for a run without a known length
_HORIZON = 50  # epochs; longer runs mostly end early, so no more is spent in advance than in a run of this length


@dataclass(frozen=True)
class Position:
    """A moment in a run at which a refit may come."""

    epochs: int  # done, the present one included
    total: int | None  # epochs of the run; None if unknown
    last: bool  # no training follows
    validated: bool  # the epoch's last validation follows; without one, or if validations go by time, the epoch has ended


@dataclass(frozen=True)
class Progress:
    """Record of earlier solves for later ones; plain numbers, for checkpoints."""

    solves: int = 0  # seeds the next one
    spent: float = 0.0  # epochs' worth of work spent on refits
    ahead: float = 0.0  # epochs' worth of work that the start took
    strength: float = math.nan  # of the last solve's penalty; NaN before the first
    fit_loss: str = ""  # solved then
    refused: int = 0  # solves in a row that were not kept
    solved_at: int = -1  # optimizer step of the last solve; -1 before the first

    def spend(self, share: float, step: int) -> Progress:
        """Add the cost of a refit on a share of the samples."""
        return replace(self, spent=self.spent + COST * share, solved_at=step)

    def after_solve(self, strength: float, fit_loss: str, kept: bool, step: int) -> Progress:
        """Add a finished solve."""
        refused = 0 if kept else self.refused + 1
        return replace(self, solves=self.solves + 1, strength=strength, fit_loss=fit_loss, refused=refused, solved_at=step)

    def after_start(self, kept: bool) -> Progress:
        """Deduct the start; the strength of one that was not kept belongs to hidden layers that are gone."""
        return replace(self, ahead=START, strength=self.strength if kept else math.nan)


def share_of_samples(position: Position, progress: Progress, settings: Settings) -> float:
    """Return the share of the samples for a refit now: 1, 0 for no refit, or in between for the last refit."""
    max_share, every = settings.max_share, settings.every_n_epochs
    regular = position.validated and bool(every) and position.epochs % every == 0
    final = position.last and settings.at_end  # uses what is left of the budget
    if not (regular or final):
        return 0.0
    epochs = max(position.total or max(_UNKNOWN, position.epochs), 1)
    horizon = min(epochs, _HORIZON)
    allowed = max_share * (epochs if final else max(position.epochs, math.sqrt(position.epochs * horizon)))
    # Ahead of the last validation, if a few batches follow it: the refit that stays in the network comes first.
    reserved = COST if settings.at_end and position.epochs == position.total and not position.last else 0.0
    left = allowed - reserved - progress.spent - (0.0 if final else progress.ahead)
    first = progress.spent == 0 and max_share * horizon - reserved >= COST
    samples = 1.0 if first or left >= COST else max(0.0, left) / COST
    return 0.0 if samples < 1 and (not final or samples < _SMALLEST_SHARE) else samples
