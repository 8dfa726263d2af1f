"""Outputs of a readout: solved from statistics, and judged on the rows that these keep."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ..convex.checks import positive_number
from .feature_rows import RowSource
from .ridge import choose_strength_of
from .statistics import Statistics

_STRENGTHS = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6)  # of the squared hinge, of the mean square of a row's features
_USUAL = 1e-4  # the same without rows to judge it on
_OCTAVES = -3, 6  # of the temperature
_WORTH = 1e-3  # relative gain in loss that a smaller strength must bring, as in convex/path.py


@dataclass(frozen=True)
class Outputs:
    """Outputs of a readout in the program's terms.

    Args:
        weight: (C, P) float64.
        bias: (C,) float64; the output neuron's resting value is part of it.
        index: (C,) filter through which each output sees the rows.
    """

    weight: Tensor
    bias: Tensor
    index: Tensor

    @staticmethod
    def of(source: RowSource) -> Outputs:
        """Return the outputs that a network has."""
        layer = source.net_map.readout
        weight = layer.weight.detach().cpu().double()
        bias = torch.zeros(len(weight)).double() if layer.bias is None else layer.bias.detach().cpu().double()
        return Outputs(weight, bias + torch.as_tensor(source.rest), source.index)

    def with_rows(self, outputs: Tensor, weight: Tensor, bias: Tensor) -> Outputs:
        """Return the same with other weights and biases of some outputs."""
        return replace(self, weight=self.weight.index_copy(0, outputs, weight), bias=self.bias.index_copy(0, outputs, bias))

    def scores(self, values: Tensor) -> Tensor:
        """Return the scores of rows (m, K, P + 1), (m, C)."""
        seen = torch.cat([self.weight, self.bias[:, None]], 1)
        scores = values.new_empty(len(values), len(self.weight))
        for number in torch.unique(self.index).tolist():
            own = self.index == number
            scores[:, own] = values[:, number] @ seen[own].T
        return scores

    def accuracy(self, values: Tensor, labels: Tensor) -> float:
        """Return the share of rows whose largest score is their class's; NaN without rows."""
        return float((self.scores(values).argmax(1) == labels).double().mean()) if len(labels) else math.nan


def checked_strength(strength: float | str) -> float | None:
    """Return a given strength, None for "auto"; refuse others."""
    if strength == "auto":
        return None
    return positive_number("strength", strength, "pass strength='auto'", "a positive number or 'auto'")


def groups_of(index: Tensor, first: int = 0) -> list[tuple[Tensor, int]]:
    """Return the outputs from ``first`` on by the filter that they see the rows through, and that filter."""
    return [(first + (index[first:] == number).nonzero()[:, 0], number) for number in torch.unique(index[first:]).tolist()]


def solve_squared(statistics: Statistics, outputs: Outputs, strength: float | None, first: int) -> tuple[Outputs, float]:
    """Solve the outputs from ``first`` on by squared loss with ridge, exactly; None takes the best strength by cross-validation."""
    groups = groups_of(outputs.index, first)
    programs = [statistics.ridge(number, own) for own, number in groups]
    found = choose_strength_of(programs) if strength is None else strength
    for (own, _), program in zip(groups, programs, strict=True):
        outputs = outputs.with_rows(own, *program.solve(found))
    return outputs, found


def solve_hinge(statistics: Statistics, outputs: Outputs, strength: float | None, first: int) -> tuple[Outputs, float]:
    """Solve the outputs from ``first`` on by the squared hinge of normal scores; None takes the best strength on kept rows."""
    if strength is None:
        outputs, strength = _best_on_kept(statistics, outputs, first)
    return _solved(statistics, outputs, strength, first), strength


def _solved(statistics: Statistics, outputs: Outputs, strength: float, first: int) -> Outputs:
    """Return the solution at a strength, from other outputs on."""
    for own, number in groups_of(outputs.index, first):
        start = outputs.weight[own], outputs.bias[own]
        outputs = outputs.with_rows(own, *statistics.moments(number).solve(own, strength, start))
    return outputs


def calibrated_loss(scores: Tensor, labels: Tensor) -> float:
    """Return the least cross-entropy of scores times a temperature, each class that occurs alike.

    The squared hinge of new rows prefers strengths ten times as large, which decide fewer of them right.
    """
    weights = 1 / torch.bincount(labels, minlength=scores.shape[1]).double()
    return min(float(nn.functional.cross_entropy(scores * 2.0**octave, labels, weights)) for octave in range(*_OCTAVES))


def _best_on_kept(statistics: Statistics, outputs: Outputs, first: int) -> tuple[Outputs, float]:
    """Return the outputs with the least cross-entropy on kept rows, which are not fitted, and their strength."""
    fitted, labels = statistics.without_kept(), statistics.kept_labels
    scale = statistics.moments(int(outputs.index[first])).scale
    best, chosen = math.inf, (outputs, _USUAL * scale)
    for factor in _STRENGTHS if len(labels) else ():
        outputs = _solved(fitted, outputs, factor * scale, first)
        loss = calibrated_loss(outputs.scores(statistics.kept), labels)
        if not loss < best * (1 - _WORTH):
            break
        best, chosen = loss, (outputs, factor * scale)
    return chosen


SOLVERS = {"squared_hinge": solve_hinge, "squared": solve_squared}


def solve_outputs(
    statistics: Statistics, index: Tensor, fit_loss: str, strength: float | None, old: Outputs | None = None
) -> tuple[Outputs, float]:
    """Return the outputs of all classes, one class against the rest, and their strength; all classes weigh alike.

    Args:
        statistics: of all samples.
        index: (C,) filter of each output.
        fit_loss: one of ``SOLVERS``.
        strength: factor of the ridge; None chooses it.
        old: the first outputs, if they are to stay; the others are brought to their range of scores.
    """
    features, first = statistics.gram.shape[-1] - 1, 0 if old is None else len(old.weight)
    blank = Outputs(torch.zeros(len(index), features).double(), torch.zeros(len(index)).double(), index)
    if old is not None:
        scale, shift = _range(statistics, old)
        blank = blank.with_rows(torch.arange(first), old.weight / scale, (old.bias - shift) / scale)
    solved, found = SOLVERS[fit_loss](statistics, blank, strength, first)
    if old is not None:
        solved = solved.with_rows(torch.arange(len(index)), scale * solved.weight, scale * solved.bias + shift)
        solved = solved.with_rows(torch.arange(first), old.weight, old.bias)
    return solved, found


def _range(statistics: Statistics, old: Outputs) -> tuple[float, float]:
    """Return half the difference between the old outputs' mean scores for their own and for other old classes, and the middle.

    The middle is a bias: the mean over rows of what a unit of it adds divides it.
    """
    classes = len(old.weight)
    means = statistics.sums[..., :classes] / torch.tensor(statistics.counts[:classes], dtype=torch.float64)
    scores = old.scores(means.permute(2, 0, 1))  # of the mean row of each class
    own = float(scores.diagonal().mean())
    other = (float(scores.sum()) - classes * own) / (classes * (classes - 1)) if classes > 1 else -own
    unit = float(means[0, -1].mean())
    return (own - other) / 2, (own + other) / 2 / unit if unit else 0.0
