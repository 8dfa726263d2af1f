"""Losses and penalties by name: a new one is a class in its file, and an entry here."""

from __future__ import annotations

from collections.abc import Mapping

from ..errors import OptionError, closest
from .loss import Loss
from .losses import CrossEntropy, Logistic
from .margins import Hinge, SquaredHinge
from .penalties import L1, GroupL1, Penalty, Ridge
from .residuals import Huber, Squared

LOSSES: dict[str, type[Loss]] = {kind.name: kind for kind in (CrossEntropy, Logistic, Hinge, SquaredHinge, Squared, Huber)}
PENALTIES: dict[str, type[Penalty]] = {kind.name: kind for kind in (GroupL1, L1, Ridge)}
# Short names, as people type them, and the losses that they stand for.
_SHORT = {"ce": "cross_entropy", "nll": "cross_entropy", "bce": "logistic", "mse": "squared", "smooth_l1": "huber"}
# Names of earlier versions, and of losses without a program, and what to type instead.
_REPLACED = {
    "mae": "pass loss='huber', an absolute error but for small ones",
    "squared_multi_margin": "pass loss='squared_hinge'",
    "group_l1+ridge": "pass penalty='ridge' or 'group_l1'",
    "l1+ridge": "pass penalty='ridge' or 'l1'",
}


def make_loss(loss: str | Loss) -> Loss:
    """Return a loss by name, or the given Loss; raise an OptionError that lists the valid names for an unknown one."""
    if isinstance(loss, Loss):
        return loss
    name = _SHORT.get(loss, loss)
    if name not in LOSSES:
        raise _unknown("loss", loss, LOSSES, "cross_entropy")
    return LOSSES[name]()


def make_penalty(penalty: str | Penalty) -> Penalty:
    """Return a penalty by name, or the given Penalty; raise an OptionError that lists the valid names for an unknown one."""
    if isinstance(penalty, Penalty):
        return penalty
    if penalty not in PENALTIES:
        raise _unknown("penalty", penalty, PENALTIES, "ridge")
    return PENALTIES[penalty]()


def _unknown(option: str, name: object, valid: Mapping[str, object], usual: str) -> OptionError:
    fix = _REPLACED.get(str(name).replace(" ", ""), f"pass {option}={closest(name, valid) or usual!r}")
    return OptionError(f"{option}={name!r}", f"one of {sorted(valid)}", fix)
