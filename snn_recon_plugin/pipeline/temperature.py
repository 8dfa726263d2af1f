"""Choice of the program by held-out loss, and temperature scaling of its scores (Guo et al. 2017, arXiv 1706.04599)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..convex import Loss, accuracy_of
from .capture import ProgramData
from .fit import Chosen, Fit
from .heldout import HeldOut, weighted_mean
from .task import Task

__all__ = ["ScaledFit", "solve_best"]

_ACCURATE = 0.9  # accuracy above which the squared hinge needs no comparison
_OCTAVES = (-4.0, 6.0)  # of the temperature: margins of 1 become 64 at most, even if the loss falls for ever
_ROUNDS = 24  # of golden section: to a thousandth of an octave
_BATCH = 256  # samples scored at once: in double precision all steps of all of them would fill the memory
_GOLDEN = (math.sqrt(5) - 1) / 2


@dataclass(frozen=True)
class ScaledFit:
    """Solved program and its temperature.

    Args:
        fit: the solved program.
        temperature: factor on all scores with the least held-out training loss; 1 if that loss itself was solved.
        heldout: held-out loss and accuracy of the fit without these samples, scaled.  Only the temperature was fitted on them.
    """

    fit: Fit
    temperature: float
    heldout: HeldOut


def solve_best(task: Task, data: ProgramData, choose: Callable[[Loss], Chosen]) -> ScaledFit:
    """Solve the first program with 90 % held-out accuracy, else the one with the least held-out loss.

    Only that program is solved on all samples.

    Args:
        task: has the candidate losses.
        data: captured samples.
        choose: returns a program with a chosen strength.
    """
    tried: list[tuple[Chosen, float, HeldOut]] = []
    for program in task.programs:
        chosen = choose(program)
        scores = _HeldOutScores(task, data, chosen)
        temperature = 1.0 if type(program) is type(task.loss) else scores.best_temperature()
        tried.append((chosen, temperature, scores.scaled(temperature)))
        if tried[-1][2].accuracy >= _ACCURATE:
            break
    else:
        tried.sort(key=lambda each: _finite(each[2].loss), reverse=True)
    chosen, temperature, heldout = tried[-1]
    return ScaledFit(chosen.solve(), temperature, heldout)


class _HeldOutScores:
    """Scores of held-out samples by the fit without them, before temperature scaling."""

    def __init__(self, task: Task, data: ProgramData, chosen: Chosen) -> None:
        held, rows = data.split.heldout, task.rows
        self._loss, self._shards = task.loss, chosen.problem.features.shards
        self._scores = _scores(task, data, chosen)
        self._targets = data.prepared(task, held)
        self._weights = None if data.weights is None else rows.weights(data.weights[held.to(data.weights.device)])
        self._count = int(self._shards.total(torch.tensor(len(held), device=self._scores.device)))
        self._accuracy = math.nan
        if chosen.problem.classifies:
            decisions = rows.decisions(self._scores.reshape(len(held), rows.each, -1) if rows.each > 1 else self._scores)
            self._accuracy = accuracy_of(task.loss, decisions, rows.decided(self._targets), self._shards)

    def loss_at(self, temperature: float) -> float:
        return weighted_mean(self._loss.value(temperature * self._scores, self._targets), self._weights, self._shards)

    def best_temperature(self) -> float:
        """Return the temperature with the least loss on all held-out samples.

        A part of them without an error would have no minimum.
        """
        found = _minimise(lambda octave: _finite(self.loss_at(2.0**octave)))
        return found if math.isfinite(self.loss_at(found)) else 1.0

    def scaled(self, temperature: float) -> HeldOut:
        """Return loss and accuracy; no temperature changes the accuracy."""
        return HeldOut(self.loss_at(temperature), self._accuracy, self._accuracy, self._count)


def _scores(task: Task, data: ProgramData, chosen: Chosen) -> Tensor:
    """Return scores (m, C) of the held-out samples, or (m * T, C) if every step is a row."""
    features, column = data.captured.features, data.bias_column(task)
    point, program = chosen.trial.solution, chosen.problem.features
    row = features.shape[-1:] if task.readout.filters is None else features.shape[-2:]
    parts = []
    for some in torch.split(data.split.heldout.to(features.device), _BATCH):
        gains: float | Tensor = 0.0
        if isinstance(column, Tensor) and features.dim() == 2:  # one a sample
            gains = column.to(features.device)[some]
        elif isinstance(column, Tensor):
            gains = column.to(features.device).repeat(len(some), *[1] * (column.dim() - 1))
        elif column is not None:
            gains = column
        parts.append(program.scores_of(features[some].reshape(-1, *row), gains, point.weight, point.bias))
    return torch.cat(parts)


def _finite(loss: float) -> float:
    """Return the loss, infinite if it is NaN, as for samples without weight."""
    return math.inf if math.isnan(loss) else loss


def _minimise(loss: Callable[[float], float]) -> float:
    """Return the factor with the least loss, by golden section over octaves; the loss is convex in the factor."""
    low, high = _OCTAVES
    left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
    at_left, at_right = loss(left), loss(right)
    for _ in range(_ROUNDS):
        if at_left <= at_right:
            high = right
            right = left
            at_right = at_left
            left = high - _GOLDEN * (high - low)
            at_left = loss(left)
        else:
            low = left
            left = right
            at_left = at_right
            right = low + _GOLDEN * (high - low)
            at_right = loss(right)
    return float(2.0 ** ((low + high) / 2))
