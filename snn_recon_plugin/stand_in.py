"""Which loss is solved: the one that is trained with, or the squared hinge in its place, scaled for it afterwards.

Cross-entropy goes on asking for larger margins of samples that are long decided, and fits them; the squared hinge, one class
against the rest, is content with a margin of 1.  On features that tell the classes apart its readout decides more samples of others
right, and after one factor on all scores (temperature scaling: Guo et al. 2017, arXiv 1706.04599) has the lower cross-entropy too.
Where features tell them apart badly, one class against the rest is the wrong question.  Measured in docs/decisions.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .convex import CrossEntropy, Loss, SquaredHinge, accuracy_of
from .errors import OptionError
from .fit import Chosen, Fit
from .networks import Readout
from .options import Options
from .outcome import Found
from .placement import HeldOut, weighted_mean

__all__ = ["FIT_LOSSES", "SAME", "Scaled", "best_fit", "check_fit_loss", "programs_of"]

AUTO, SAME, SQUARED_HINGE = FIT_LOSSES = ("auto", "same", "squared_hinge")

_WELL = 0.9  # accuracy above which the squared hinge needs no comparison
_OCTAVES = (-4.0, 6.0)  # of the factor: margins of 1 become 64 at most, where held-out samples would ask for ever more
_ROUNDS = 24  # of golden section: to a thousandth of an octave
_AT_ONCE = 256
_GOLDEN = (math.sqrt(5) - 1) / 2


def check_fit_loss(fit_loss: str, loss: Loss, name: str) -> None:
    """Refuses a loss that the squared hinge can't stand in for, where that was asked for.

    Raises:
        OptionError: it is not cross-entropy.
    """
    if fit_loss == SQUARED_HINGE and not isinstance(loss, CrossEntropy):
        found = f"fit_loss='squared_hinge' with loss={name!r}"
        raise OptionError(found, "a cross-entropy, which it stands in for", "pass loss='squared_hinge', or leave fit_loss out")


def programs_of(options: Options, loss: Loss, readout: Readout, each: int) -> tuple[Loss, ...]:
    """The losses to solve, in this order, until one does.

    Args:
        options: of the run.
        loss: that is trained with.
        readout: how scores are read.
        each: rows of the program that a sample is.
    """
    if options.fit_loss == SAME or not isinstance(loss, CrossEntropy):
        return (loss,)
    if options.fit_loss == SQUARED_HINGE:
        return (SquaredHinge(),)
    # A number is of the program that its user has in mind; a maximum over time is refined on the loss itself.
    plain = isinstance(options.strength, str) and options.solver != "highs"
    return (SquaredHinge(), loss) if plain and each == 1 and readout.exactness != "majorised" else (loss,)


class Scaled(NamedTuple):
    """A solved program, and how its solution is scaled for the loss that is trained with.

    Args:
        fit: the solved program.
        scale: the factor on all scores with the least loss on held-out samples; 1 where that loss itself was solved.
        heldout: what these say of the fit without them, scaled so.  They have chosen the factor, which is one number.
    """

    fit: Fit
    scale: float
    heldout: HeldOut


def best_fit(found: Found, choose: Callable[[Loss], Chosen]) -> Scaled:
    """The first program's solution where that decides held-out samples well; else of all programs' that with the least loss there.

    Only the program that is taken is solved on all samples.

    Args:
        found: before the solve.
        choose: chooses a program's strength.
    """
    tried: list[tuple[Chosen, float, HeldOut]] = []
    for program in found.programs:
        chosen = choose(program)
        tried.append((chosen, *_compared(found, chosen)))
        if tried[-1][2].accuracy >= _WELL:
            break
    else:
        tried.sort(key=lambda each: _finite(each[2].loss), reverse=True)
    chosen, factor, heldout = tried[-1]
    return Scaled(chosen.solve(), factor, heldout)


def _compared(found: Found, chosen: Chosen) -> tuple[float, HeldOut]:
    """The factor on all scores, and the held-out samples' outcome with it."""
    held = _HeldOutScores(found, chosen)
    same = type(chosen.problem.loss) is type(found.loss)
    # All at once: a part without a wrong sample asks for a factor far too large for another part.
    factor = 1.0 if same else held.best()
    return factor, held.outcome(held.loss_at(factor))


class _HeldOutScores:
    """Scores of held-out samples with the fit that has not seen them, before any factor."""

    def __init__(self, found: Found, chosen: Chosen) -> None:
        held, labels, weights, rows = found.split.heldout, found.captured.targets, found.weights, found.rows
        self._loss, self._shards = found.loss, chosen.problem.design.shards
        self._scores = _scores(found, chosen)
        self._targets = found.loss.prepare(rows.targets(labels[held.to(labels.device)]), found.classes)
        self._weights = None if weights is None else rows.weights(weights[held.to(weights.device)])
        self.count = int(self._shards.total(torch.tensor(len(held), device=self._scores.device)))
        self.accuracy = math.nan
        if chosen.problem.classifies:
            decisions = rows.decisions(self._scores.reshape(len(held), rows.each, -1) if rows.each > 1 else self._scores)
            self.accuracy = accuracy_of(found.loss, decisions, rows.decided(self._targets), self._shards)

    def loss_at(self, factor: float) -> float:
        """Mean loss of the scaled scores."""
        return weighted_mean(self._loss.value(factor * self._scores, self._targets), self._weights, self._shards)

    def best(self) -> float:
        """The factor with the least loss."""
        factor = _least(lambda octave: _finite(self.loss_at(2.0**octave)))
        return factor if math.isfinite(self.loss_at(factor)) else 1.0

    def outcome(self, loss: float) -> HeldOut:
        """A loss, and the accuracy that no factor changes."""
        return HeldOut(loss, self.accuracy, self.accuracy, self.count)


def _scores(found: Found, chosen: Chosen) -> Tensor:
    """(m, C), or (m * T, C) where every step is a row."""
    features, column, point, design = found.captured.features, found.bias_column, chosen.trial.solution, chosen.problem.design
    held = found.split.heldout.to(features.device)
    # A few samples at a time: in double precision all steps of all of them would fill the memory.
    row = features.shape[-1:] if found.readout.filters is None else features.shape[-2:]
    parts = []
    for some in torch.split(held, _AT_ONCE):
        gains: float | Tensor = 0.0
        if isinstance(column, Tensor) and features.dim() == 2:  # of each sample
            gains = column.to(features.device)[some]
        elif isinstance(column, Tensor):
            gains = column.to(features.device).repeat(len(some), *[1] * (column.dim() - 1))
        elif column is not None:
            gains = column
        parts.append(design.scores_of(features[some].reshape(-1, *row), gains, point.weight, point.bias))
    return torch.cat(parts)


def _finite(loss: float) -> float:
    """A loss that is a number; of samples that all weigh nothing it is none."""
    return math.inf if math.isnan(loss) else loss


def _least(loss: Callable[[float], float]) -> float:
    """The factor that minimises a loss, which is convex in it, by golden section over octaves."""
    low, high = _OCTAVES
    left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
    at_left, at_right = loss(left), loss(right)
    for _ in range(_ROUNDS):
        if at_left <= at_right:
            high, right, at_right = right, left, at_left
            left = high - _GOLDEN * (high - low)
            at_left = loss(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + _GOLDEN * (high - low)
            at_right = loss(right)
    return float(2.0 ** ((low + high) / 2))
