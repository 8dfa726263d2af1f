"""Accelerated proximal gradient steps, from any start to the neighbourhood in which Newton steps converge.

FISTA with restarts and backtracking, in the metric of each column's own curvature.  Column j moves with a step proportional to
1 / variance_j, so features of very different scales do not slow each other down.  The steps run in the precision of the columns.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import torch
from torch import Tensor

from .columns import Columns
from .problem import Problem

__all__ = ["Accelerated", "accelerate"]


@dataclass(frozen=True)
class Accelerated:
    """Weight (C, A) and bias (C,) for features as given, the next step length, and the number of products taken."""

    weight: Tensor
    bias: Tensor
    scale: float
    products: int


_HALVINGS = 20  # maximum for one step; the first is four times a safe one
_LOOK = 10  # steps between checks of the objective
_GROWTH = 1.05  # of the step length: local curvature is far below the bound once samples are fitted


def accelerate(
    problem: Problem,
    columns: Columns,
    weight: Tensor,
    bias: Tensor,
    steps: int,
    *,
    scale: float | None = None,
    index: Tensor | None = None,
    settled: float = 0.0,
    deadline: float = math.inf,
) -> Accelerated:
    """Run at most ``steps`` accelerated proximal gradient steps, of two products with the columns each.

    Scores are linear in the weights.  The scores of an extrapolated point are extrapolated too, and cost no product.

    Args:
        problem: the program.
        columns: features that take part, in the working precision.
        weight: (C, A) start, for these features as given; the weights of all others are zero and stay so.
        bias: (C,) start.
        steps: maximum number of steps.
        scale: initial step length in the column metric; None estimates it.
        index: (A,) indices of these features; None means all.
        settled: stop if 10 steps have lowered the objective by less than this share of it.
        deadline: stop at the first tenth step after this value of ``time.perf_counter``.
    """
    # The prox of a group takes one step length for all of its weights.
    sizes = problem.design.variance if problem.penalty.separable else problem.design.largest_variance
    metric = _inverse(sizes if index is None else sizes[..., index]).to(columns.dtype)
    shift = bias + columns.centring(weight)
    size = scale if scale is not None else _first_step(problem, columns, metric)
    bias_bend = problem.loss.bound * _bias_scale(columns)
    previous = point = (weight, shift, columns.scores(weight, shift))
    momentum = 1.0
    products = 1
    decided = columns.shards.decided
    last = _mean_loss(problem, columns, point[2]) + problem.strength * float(problem.penalty.value(weight))
    for count in range(1, steps + 1):
        value = _mean_loss(problem, columns, point[2])
        if not math.isfinite(value):
            break
        slope, slope_shift = columns.adjoint(problem.loss.gradient(point[2], problem.targets))
        if not problem.design.has_bias:
            slope_shift = torch.zeros_like(slope_shift)
        moved_shift = point[1] - slope_shift / bias_bend
        change_shift = moved_shift - point[1]
        level = value + float((slope_shift * change_shift).sum()) + bias_bend * float(change_shift.square().sum())
        products += 1
        longest = size
        for _ in range(_HALVINGS):
            step = size * metric
            moved_weight = problem.penalty.prox(point[0] - step * slope, step * problem.strength)
            change = moved_weight - point[0]
            bound = level + float((slope * change).sum()) + 0.5 * float((change.square() * _inverse(step)).sum())
            moved = (moved_weight, moved_shift, columns.scores(moved_weight, moved_shift))
            products += 1
            loss = _mean_loss(problem, columns, moved[2])
            if decided(loss <= bound + 1e-6 * abs(value)):
                break
            size /= 2
        else:  # shorter steps differ by rounding alone: this precision allows no further progress
            size = longest
            break
        if decided(float(((point[0] - moved[0]) * (moved[0] - previous[0])).sum()) > 0):
            momentum = 1.0  # the step opposes the previous one: gradient restart
        following = (1 + math.sqrt(1 + 4 * momentum * momentum)) / 2
        ahead = (momentum - 1) / following
        point = (
            torch.lerp(previous[0], moved[0], 1 + ahead),
            torch.lerp(previous[1], moved[1], 1 + ahead),
            torch.lerp(previous[2], moved[2], 1 + ahead),
        )
        previous, momentum = moved, following
        size *= _GROWTH
        if count % _LOOK == 0:
            objective = loss + problem.strength * float(problem.penalty.value(moved_weight))
            # A rise is a ripple of the acceleration, and the restart ends it.  Only a small decrease indicates convergence.
            if decided(0 <= last - objective < settled * abs(objective) or time.perf_counter() > deadline):
                break
            last = objective
    return Accelerated(previous[0], previous[1] - columns.centring(previous[0]), size, products)


def _mean_loss(problem: Problem, columns: Columns, scores: Tensor) -> float:
    value = columns.row_weights @ problem.loss.value(scores, problem.targets)
    return columns.shards.decided(float(columns.shards.total(value)))


def _bias_scale(columns: Columns) -> float:
    """Return the curvature of the loss in the bias, per unit of the loss's own bound, with a safety factor of 2."""
    spread = columns.shards.total(columns.row_weights @ columns.bias_column.square())
    return max(float(spread.max()), torch.finfo(columns.dtype).tiny)


def _inverse(values: Tensor) -> Tensor:
    return torch.where(values > 0, 1 / values.clamp_min(torch.finfo(values.dtype).tiny), 0.0)


def _first_step(problem: Problem, columns: Columns, metric: Tensor) -> float:
    """Return 1 / Lipschitz constant of the gradient in the column metric, by power iterations on the scaled second moment."""
    roots = metric.sqrt()
    generator = torch.Generator().manual_seed(0)
    outputs = 1 if columns.shared else problem.num_outputs
    vector = torch.randn(outputs, metric.shape[-1], generator=generator).to(roots) * (roots > 0)
    top = 0.0
    for _ in range(12):
        vector = vector / vector.norm().clamp_min(torch.finfo(vector.dtype).tiny)
        scores = columns.scores(roots * vector, vector.new_zeros(outputs))
        image = roots * columns.adjoint(scores)[0]
        top = float((image * vector).sum())
        vector = image
    # Four times the safe step: the bound is a worst case over all scores, and backtracking shortens steps that are too long.
    return 4.0 / (problem.loss.bound * top) if top > 0 else 1.0
