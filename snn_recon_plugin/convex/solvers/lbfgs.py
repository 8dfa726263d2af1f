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
from ..penalties import Penalty, inverse
from ..problem import Problem
from .solver import Start

_MEMORY = 10  # steps whose changes are remembered
_SLOPE_LEFT = 0.05  # slope at the end of a line search of L-BFGS, over the first one
_ROUND, _FALL = 20, 0.3  # steps, and the share of the gap that they have to reach: else Newton steps are faster
_LENGTHS, _LINE_SLOPE = 20, 1e-3  # steps of an exact line search, and by default the slope at its end over the first one
_LEAST_LENGTH = 2.0**-15  # shorter ones mean that rounding left no descent
_MARGIN = 0.5  # of the tolerance: the gap is estimated in the working precision, and before the bias is exact


def lbfgs(
    problem: Problem, columns: Features, start: Start, steps: int, *, tol: float, deadline: float
) -> tuple[Tensor, Tensor, int]:
    """Take at most ``steps`` steps of two products each; return weight (C, P), bias (C,) and the number of products.

    ``columns`` are all features, in the precision of the start.  The steps end early if the estimated relative gap
    is below ``tol`` or falls slowly, if no step lowers the objective, or at the ``deadline`` of ``time.perf_counter``.
    """
    penalty, strength, targets = problem.penalty, problem.strength, problem.targets

    def scores_of(point: Tensor) -> Tensor:
        return columns.centred_scores(point[:, :-1], point[:, -1])

    def gradient_at(point: Tensor, scores: Tensor) -> tuple[Tensor, float, bool]:
        """Return the gradient in (W, b), an estimate of the relative gap (Fenchel's in W), and whether time is up."""
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
    memory, products = _Memory(metric, problem.independent_outputs), 2
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


def _metric(problem: Problem, penalty: Penalty, columns: Features, weight: Tensor) -> Tensor:
    """Return the inverse of the largest second derivative in every weight and bias, (C, P + 1)."""
    bound, bend = problem.loss.max_curvature, columns.row_mean(columns.bias_column.square())
    of_weights = bound * columns.variance.to(weight) + problem.strength * penalty.hessian_diagonal(weight)
    return inverse(torch.cat([of_weights, bound * bend[:, None].expand(len(weight), 1)], 1))


class _Memory:
    """The last steps and the changes of the gradient along them, and the direction that follows from them."""

    def __init__(self, metric: Tensor, separate: bool) -> None:
        self.metric, self.independent_outputs = metric, separate
        self.pairs: list[tuple[Tensor, Tensor, Tensor]] = []  # step, change of the gradient, inverse of their inner product
        self.scale = metric.new_ones(1, 1)

    def inner(self, one: Tensor, other: Tensor) -> Tensor:
        """Return inner products of two changes, (C, 1) if outputs are separate, else (1, 1)."""
        products = (one * other).sum(1, keepdim=True)
        return products if self.independent_outputs else products.sum(0, keepdim=True)

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


def exact_lengths(
    problem: Problem, features: Features, point: tuple[Tensor, Tensor], step: tuple[Tensor, Tensor], slope_left: float = _LINE_SLOPE
) -> Tensor:
    """Return the lengths with the least objective, (C,) if outputs are separate programs, else (1,); by safeguarded Newton steps.

    Point and step are both weights (C, P) and scores (n, C).  The slope falls to its share ``slope_left``.
    """
    (weight, scores), (change, moved) = point, step
    penalty, separate = problem.penalty, problem.independent_outputs
    outputs = moved.shape[1]
    size = moved.new_ones(outputs if separate else 1)
    low, high = torch.zeros_like(size), torch.full_like(size, torch.inf)
    first: Tensor | None = None

    def slopes(rows: slice) -> Tensor:
        here = scores[rows] + size * moved[rows]
        return moved[rows] * problem.loss.part(rows).gradient(here, problem.targets[rows])

    def bends(rows: slice) -> Tensor:
        here = scores[rows] + size * moved[rows]
        return moved[rows] * problem.loss.part(rows).curvature(here, problem.targets[rows]).product(moved[rows])

    def derivatives(*orders: int) -> Tensor:
        """Return the first or second derivative of the objective at these lengths, (K, C) or (K, 1), in one sum over processes."""
        there = weight + size[:, None] * change
        of_rows, of_weights = [], []
        for order in orders:
            of_rows.append(features.row_part_of(slopes if order == 1 else bends, outputs))
            bent = penalty.gradient(there) if order == 1 else penalty.hessian_product(there, change)
            of_weights.append(problem.strength * (bent * change).sum(1))
        parts = torch.stack(of_rows), torch.stack(of_weights)
        return features.shards.sum(*(part if separate else part.sum(1, keepdim=True) for part in parts))

    together = not features.is_whole  # a message costs more there than a second derivative that is not needed
    for _ in range(_LENGTHS):
        slope, *bends_too = derivatives(1, 2) if together else derivatives(1)
        first = slope.abs() if first is None else first
        high, low = torch.where(slope > 0, size, high), torch.where(slope > 0, low, size)
        if bool((slope.abs() <= slope_left * first).all()):
            break
        bend = bends_too[0] if together else derivatives(2)[0]
        ahead = size - slope / bend.clamp_min(torch.finfo(bend.dtype).tiny)
        inside = (ahead > low) & (ahead < high)
        size = torch.where(inside, ahead, torch.where(torch.isinf(high), 2 * size, 0.5 * (low + high)))
    return torch.where(size > _LEAST_LENGTH, size, 0.0)
