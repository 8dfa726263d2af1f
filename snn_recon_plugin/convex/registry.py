"""Losses and penalties by name: a new one is a class in its file, and an entry here."""

from __future__ import annotations

from ..errors import OptionError, closest
from .losses import CrossEntropy, Huber, Logistic, Loss, Squared
from .margins import Hinge, SquaredHinge, SquaredMultiMargin
from .penalties import L1, Elastic, GroupL1, Penalty, Ridge

LOSSES: dict[str, type[Loss]] = {
    kind.name: kind for kind in (CrossEntropy, Logistic, Hinge, SquaredHinge, SquaredMultiMargin, Squared, Huber)
}
PENALTIES: dict[str, type[Penalty]] = {kind.name: kind for kind in (GroupL1, L1, Ridge)}


def make_loss(loss: str | Loss) -> Loss:
    """Return a loss by name, or the given Loss; raise an OptionError that lists the valid names for an unknown one."""
    if isinstance(loss, Loss):
        return loss
    if loss not in LOSSES:
        raise OptionError(f"loss={loss!r}", f"one of {sorted(LOSSES)}", f"pass loss={closest(loss, LOSSES) or 'cross_entropy'!r}")
    return LOSSES[loss]()


def make_penalty(penalty: str | Penalty) -> Penalty:
    """Return a penalty by name, or the given Penalty; "group_l1+ridge" and "l1+ridge" add the ridge with a share of 1.

    An unknown name raises an OptionError that lists the valid ones.
    """
    if isinstance(penalty, Penalty):
        return penalty
    name = penalty.replace(" ", "") if isinstance(penalty, str) else penalty
    if name in PENALTIES:
        return PENALTIES[name]()
    sums = {f"{base}+ridge": base for base, kind in PENALTIES.items() if kind.sparse}
    if name in sums:
        return Elastic(PENALTIES[sums[name]]())
    valid = sorted([*PENALTIES, *sums])
    raise OptionError(f"penalty={penalty!r}", f"one of {valid}", f"pass penalty={closest(penalty, valid) or 'ridge'!r}")
