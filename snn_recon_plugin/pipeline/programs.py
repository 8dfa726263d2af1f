"""Candidate losses of the program: the training loss, or the squared hinge in place of cross-entropy.

Cross-entropy keeps rewarding larger margins of samples that are classified already, and overfits.  The squared hinge, one class
against the rest, stops at a margin of 1.  On features that separate the classes it generalises better, and after temperature
scaling it has the lower cross-entropy too.  On features that separate them badly, cross-entropy is the better program.
docs/decisions.md has the measurements.
"""

from __future__ import annotations

from ..convex import CrossEntropy, Loss, SquaredHinge
from ..errors import OptionError

__all__ = ["FIT_LOSSES", "SAME", "candidate_losses", "check_fit_loss"]

AUTO, SAME, SQUARED_HINGE = FIT_LOSSES = ("auto", "same", "squared_hinge")


def check_fit_loss(fit_loss: str, loss: Loss, name: str) -> None:
    """Refuse the squared hinge for a training loss that it can't replace.

    Raises:
        OptionError: the training loss is no cross-entropy.
    """
    if fit_loss == SQUARED_HINGE and not isinstance(loss, CrossEntropy):
        found = f"fit_loss='squared_hinge' with loss={name!r}"
        raise OptionError(found, "a cross-entropy, which it replaces", "pass loss='squared_hinge', or leave fit_loss out")


def candidate_losses(
    fit_loss: str, loss: Loss, *, strength: float | str, solver: str, exactness: str, rows_each: int
) -> tuple[Loss, ...]:
    """Return the losses to solve; the first one with 90 % held-out accuracy is used.

    Args:
        fit_loss: option.
        loss: training loss.
        strength: option; a number belongs to the program that its user has in mind, which is the training loss.
        solver: option; HiGHS solves no squared hinge.
        exactness: of the readout; a maximum over time is refined on the training loss itself.
        rows_each: rows of a sample.
    """
    if fit_loss == SAME or not isinstance(loss, CrossEntropy):
        return (loss,)
    if fit_loss == SQUARED_HINGE:
        return (SquaredHinge(),)
    replaceable = isinstance(strength, str) and solver != "highs" and rows_each == 1 and exactness != "majorised"
    return (SquaredHinge(), loss) if replaceable else (loss,)
