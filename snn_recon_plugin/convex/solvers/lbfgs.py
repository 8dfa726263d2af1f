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
from .solver import Start

_MEMORY = 10  # steps whose changes are remembered
_SLOPE_LEFT = 0.05  # slope at the end of a line search, over the first one
_ROUND, _FALL = 20, 0.3  # steps, and the share of the gap that they have to reach: else Newton steps are faster
_MARGIN = 0.5  # of the tolerance: the gap is estimated in the working precision, and before the bias is exact


def lbfgs(
    problem: Problem, columns: Features, start: Start, steps: int, *, tol: float, deadline: float
) -> tuple[Tensor, Tensor, int]:
    """Take at most ``steps`` steps of two products each; return weight (C, P), bias (C,) and the number of products.

    ``columns`` are all features, in the precision of the start.  The steps end early if the estimated relative gap
    is below ``tol`` or falls slowly, if no step lowers the objective, or at the ``deadline`` of ``time.perf_counter``.
    """
    penalty, strength, targets = problem.penalty, problem.strength, problem.targets
    assert isinstance(penalty, NewtonPenalty)  # see Newton.supports

    def scores_of(point: Tensor) -> Tensor:
        return columns.centred_scores(point[:, :-1], point[:, -1])

    def gradient_at(point: Tensor, scores: Tensor) -> tuple[Tensor, float, bool]:
        """Return the gradient in (W, b), an estimate of the relative gap, and whether time is up.

        The gap is Fenchel's in W, and the gain left in the bias.
        """
        here = point[:, :-1]
        slope, slope_shift = columns.adjoint_of(
            lambda rows: problem.loss.part(rows).gradient(scores[rows], targets[rows]), len(point)
        )
        gap = strength * penalty.value(here) + penalty.conjugate(slope, strength) + (slope * here).sum()
        gap = gap + (slope_shift.square() * metric[:, -1]).sum()
        gradient = torch.cat([slope + strength * penalty.gradient(here), slope_shift[:, None]], 1)
        gap, late = columns.shards.broadcast(torch.stack([gap, gap.new_tensor(time.perf_counter() > deadline)])).tolist()
        return gradient, gap / problem.zero_loss, bool(late)

    point = torch.cat([start.weight, (start.bias + columns.centring(start.weight))[:, None]], 1)
    metric = _metric(problem, penalty, columns, start.weight)
    memory, products = _Memory(metric, problem.separate), 2
    scores = scores_of(point)
    gradient, gap, late = gradient_at(point, scores)
    last = math.inf
    for count in range(steps):
        if late or not gap > _MARGIN * tol:
            break
        if count % _ROUND == 0:
            if gap > _FALL * last:
                break
            last = gap
        direction = memory.direction(gradient)
        moved = scores_of(direction)
        lengths = exact_lengths(problem, columns, (point[:, :-1], scores), (direction[:, :-1], moved), _SLOPE_LEFT)
        if not bool(lengths.any()):
            break
        step, before = lengths[:, None] * direction, gradient
        point = point + step
        scores.addcmul_(lengths, moved)
        gradient, gap, late = gradient_at(point, scores)
        memory.add(step, gradient - before)
        products += 2
    return point[:, :-1], point[:, -1] - columns.centring(point[:, :-1]), products


def _metric(problem: Problem, penalty: NewtonPenalty, columns: Features, weight: Tensor) -> Tensor:
    """Return the inverse of the largest second derivative in every weight and bias, (C, P + 1)."""
    bound, bend = problem.loss.max_curvature, columns.row_mean(columns.bias_column.square())
    of_weights = bound * columns.variance.to(weight) + problem.strength * penalty.hessian_diagonal(weight)
    return inverse(torch.cat([of_weights, bound * bend[:, None].expand(len(weight), 1)], 1))


class _Memory:
    """The last steps and the changes of the gradient along them, and the direction that follows from them."""

    def __init__(self, metric: Tensor, separate: bool) -> None:
        self.metric, self.separate = metric, separate
        self.pairs: list[tuple[Tensor, Tensor, Tensor]] = []  # step, change of the gradient, inverse of their inner product
        self.scale = metric.new_ones(1, 1)

    def inner(self, one: Tensor, other: Tensor) -> Tensor:
        """Return inner products of two changes, (C, 1) if outputs are separate, else (1, 1)."""
        products = (one * other).sum(1, keepdim=True)
        return products if self.separate else products.sum(0, keepdim=True)

    def add(self, step: Tensor, change: Tensor) -> None:
        """Remember a step and the change of the gradient along it; an output that did not move keeps its scale."""
        product = self.inner(step, change)
        self.scale = torch.where(product > 0, product * inverse(self.inner(change, self.metric * change)), self.scale)
        self.pairs = [*self.pairs[1 - _MEMORY :], (step, change, inverse(product))]

    def direction(self, gradient: Tensor) -> Tensor:
        """Return the gradient times minus an approximate inverse of the second derivative, (C, P + 1)."""
        found, alphas = gradient.clone(), []
        for step, change, rho in reversed(self.pairs):
            alphas.append(rho * self.inner(step, found))
            found -= alphas[-1] * change
        found *= self.scale * self.metric
        for (step, change, rho), alpha in zip(self.pairs, reversed(alphas), strict=True):
            found += (alpha - rho * self.inner(change, found)) * step
        return -found
