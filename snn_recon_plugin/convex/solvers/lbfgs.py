"""L-BFGS with exact line searches, for programs whose loss and penalty are smooth: how Newton's method begins on them.

Scores are linear in the weights, so a line search costs no product with the features.  If outputs are separate programs, each has
its own step lengths and its own memory; all share the products.  (Nocedal and Wright, Numerical Optimization, algorithm 7.4.)
"""

from __future__ import annotations

import math
import time

import torch
from torch import Tensor

from ..features import Features
from ..penalties import NewtonPenalty, inverse
from ..problem import Problem
from .line_search import exact_lengths

_MEMORY = 10  # steps whose changes are remembered
_FLAT = 0.05  # slope at the end of a line search, over the first one
_ROUND, _FALL = 20, 0.3  # no more follow if so many have not lowered the gap to this share: Newton steps are faster then
_SURE = 0.5  # of the tolerance: the gap is estimated in the working precision, and before the bias is exact


def lbfgs(
    problem: Problem, columns: Features, weight: Tensor, bias: Tensor, steps: int, *, tol: float, deadline: float
) -> tuple[Tensor, Tensor, int]:
    """Take at most ``steps`` steps of two products each; return weight (C, P), bias (C,) and the number of products.

    ``columns`` are all features, in the precision of weight and bias.  The steps end early if the relative gap is about below
    ``tol``, if it falls slowly, if no step lowers the objective, or at the ``deadline`` of ``time.perf_counter``.
    """
    penalty, strength, targets = problem.penalty, problem.strength, problem.targets
    assert isinstance(penalty, NewtonPenalty)  # see Newton.supports

    def scores_of(point: Tensor) -> Tensor:
        return columns.centred_scores(point[:, :-1], point[:, -1])

    def gradient_at(point: Tensor, scores: Tensor) -> tuple[Tensor, float]:
        """Return the gradient in (W, b), and about the relative gap: Fenchel's in W, and what the bias can gain."""
        here = point[:, :-1]
        slope, slope_shift = columns.adjoint(problem.loss.gradient(scores, targets))
        gap = strength * penalty.value(here) + penalty.conjugate(slope, strength) + (slope * here).sum()
        gap = gap + (slope_shift.square() * memory.metric[:, -1]).sum()
        gradient = torch.cat([slope + strength * penalty.gradient(here), slope_shift[:, None]], 1)
        return gradient, columns.shards.decided(float(gap)) / problem.zero_loss

    point = torch.cat([weight, (bias + columns.centring(weight))[:, None]], 1)
    memory, products = _Memory(problem, columns, point), 2
    scores = scores_of(point)
    gradient, gap = gradient_at(point, scores)
    last = math.inf
    for count in range(steps):
        if not gap > _SURE * tol or columns.shards.decided(time.perf_counter() > deadline):
            break
        if count % _ROUND == 0:
            if gap > _FALL * last:
                break
            last = gap
        direction = memory.direction(gradient)
        moved = scores_of(direction)
        lengths = exact_lengths(problem, columns, point[:, :-1], scores, direction[:, :-1], moved, _FLAT)
        if not bool(lengths.any()):
            break
        change, before = lengths[:, None] * direction, gradient
        point, scores = point + change, scores + lengths * moved
        gradient, gap = gradient_at(point, scores)
        memory.add(change, gradient - before)
        products += 2
    return point[:, :-1], point[:, -1] - columns.centring(point[:, :-1]), products


class _Memory:
    """The last changes of the point and of the gradient, and the direction that follows from them."""

    def __init__(self, problem: Problem, columns: Features, point: Tensor) -> None:
        penalty, weight, bend = problem.penalty, point[:, :-1], columns.row_mean(columns.bias_column.square())
        assert isinstance(penalty, NewtonPenalty)  # see Newton.supports
        # The largest second derivative in every weight and bias.
        sizes = problem.loss.bound * columns.variance.to(point) + problem.strength * penalty.hessian_diagonal(weight)
        sizes = torch.cat([sizes, problem.loss.bound * bend[:, None].expand(len(point), 1)], 1)
        self.metric = inverse(sizes)
        self.separate = problem.separate
        self.pairs: list[tuple[Tensor, Tensor, Tensor]] = []
        self.scale = point.new_ones(1, 1)

    def inner(self, one: Tensor, other: Tensor) -> Tensor:
        """Return inner products of two changes, (C, 1) if outputs are separate, else (1, 1)."""
        products = (one * other).sum(1, keepdim=True)
        return products if self.separate else products.sum(0, keepdim=True)

    def add(self, change: Tensor, turn: Tensor) -> None:
        """Remember a step, and what it changed in the gradient; an output that did not move keeps its scale."""
        product = self.inner(change, turn)
        self.scale = torch.where(product > 0, product * inverse(self.inner(turn, self.metric * turn)), self.scale)
        self.pairs = [*self.pairs[1 - _MEMORY :], (change, turn, inverse(product))]

    def direction(self, gradient: Tensor) -> Tensor:
        """Return minus about the inverse second derivative times the gradient, (C, P + 1)."""
        found, shares = gradient.clone(), []
        for change, turn, share in reversed(self.pairs):
            shares.append(share * self.inner(change, found))
            found -= shares[-1] * turn
        found *= self.scale * self.metric
        for (change, turn, share), kept in zip(self.pairs, reversed(shares), strict=True):
            found += (kept - share * self.inner(turn, found)) * change
        return -found
