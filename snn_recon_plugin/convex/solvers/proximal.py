"""Accelerated proximal gradient steps (FISTA) with restarts and backtracking, in the metric of each column's own variance."""

from __future__ import annotations

import math
import time

import torch
from torch import Tensor

from ..features import Features
from ..penalties import inverse
from ..problem import Problem
from .solver import Start

_HALVINGS = 20  # maximum for one step; the first is four times a safe one
_LOOK = 10  # steps between checks of the objective
_ROUNDING = {torch.float32: 1e-6, torch.float64: 1e-14}  # relative error of an objective: a step may raise it by that much
_LEAST_VARIANCE = 1e-24  # over the largest: step lengths of columns with less would overflow in float32
_GROWTH = 1.05  # of the step length: local curvature is far below the bound once samples are fitted


def accelerate(
    problem: Problem, columns: Features, start: Start, steps: int, *, settled: float = 0.0, deadline: float = math.inf
) -> tuple[Start, int]:
    """Run at most ``steps`` accelerated proximal gradient steps, of two products with the columns each.

    Return the point with the next step length, and the number of products taken.

    The start has weights (C, A) of the columns in their precision, and the first step length in the column metric.  Weights of
    other features are zero and stay so.  The steps end early if 10 of them have lowered the objective by less than the share
    ``settled`` of it.
    """
    weight, bias = start.weight, start.bias
    # The prox of a group takes one step length for all of its weights.
    sizes = columns.variance if problem.penalty.separable else columns.variance.amax(0)
    smallest = _LEAST_VARIANCE * sizes.max()
    metric = inverse(torch.where(sizes > 0, sizes.clamp_min(smallest), 0.0)).to(columns.dtype)
    shift = bias + columns.centring(weight)
    size = start.step if start.step is not None else _first_step(problem, columns, metric)
    bend, tiny = float(columns.row_mean(columns.bias_column.square()).max()), torch.finfo(columns.dtype).tiny
    bias_bend = problem.loss.max_curvature * max(bend, tiny)  # the curvature in the bias, with a safety factor of 2 below
    previous: tuple[Tensor, ...] = (weight, shift, columns.centred_scores(weight, shift))
    point, momentum, products, agree = previous, 1.0, 1, columns.shards.broadcast_number
    last = columns.mean_value(problem.loss.value(point[2], problem.targets)) + problem.strength * float(
        problem.penalty.value(weight)
    )
    for count in range(1, steps + 1):
        value = columns.mean_value(problem.loss.value(point[2], problem.targets))
        if not math.isfinite(value):
            break
        slope, slope_shift = columns.adjoint(problem.loss.gradient(point[2], problem.targets))
        moved_shift = point[1] - slope_shift / bias_bend
        change_shift = moved_shift - point[1]
        level = value + float((slope_shift * change_shift).sum()) + bias_bend * float(change_shift.square().sum())
        products += 1
        longest = size
        for _ in range(_HALVINGS):
            step = size * metric
            moved_weight = problem.penalty.prox(point[0] - step * slope, step * problem.strength)
            change = moved_weight - point[0]
            bound = level + float((slope * change).sum()) + 0.5 * float((change.square() * inverse(step)).sum())
            moved = (moved_weight, moved_shift, columns.centred_scores(moved_weight, moved_shift))
            products += 1
            loss = columns.mean_value(problem.loss.value(moved[2], problem.targets))
            if agree(loss <= bound + _ROUNDING[columns.dtype] * abs(value)):
                break
            size /= 2
        else:  # shorter steps differ by rounding alone: this precision allows no further progress
            size = longest
            break
        if agree(float(((point[0] - moved[0]) * (moved[0] - previous[0])).sum()) > 0):
            momentum = 1.0  # the step opposes the previous one: gradient restart
        following = (1 + math.sqrt(1 + 4 * momentum * momentum)) / 2
        ahead = (momentum - 1) / following
        point = tuple(torch.lerp(before, after, 1 + ahead) for before, after in zip(previous, moved, strict=True))
        previous, momentum = moved, following
        size *= _GROWTH
        if count % _LOOK == 0:
            objective = loss + problem.strength * float(problem.penalty.value(moved_weight))
            # A rise is a ripple of the acceleration, and the restart ends it.  Only a small decrease indicates convergence.
            if agree(0 <= last - objective < settled * abs(objective) or time.perf_counter() > deadline):
                break
            last = objective
    return Start(previous[0], previous[1] - columns.centring(previous[0]), size), products


def _first_step(problem: Problem, columns: Features, metric: Tensor) -> float:
    """Return 1 / Lipschitz constant of the gradient in the column metric, by power iterations on the scaled second moment."""
    roots = metric.sqrt()
    generator = torch.Generator().manual_seed(0)
    vector = torch.randn(1, metric.shape[-1], generator=generator, device="cpu").to(roots) * (roots > 0)
    top = 0.0
    for _ in range(12):
        vector = vector / vector.norm().clamp_min(torch.finfo(vector.dtype).tiny)
        scores = columns.centred_scores(roots * vector, vector.new_zeros(1))
        image = roots * columns.adjoint(scores)[0]
        top = float((image * vector).sum())
        vector = image
    # Four times the safe step: the bound is a worst case over all scores, and backtracking shortens steps that are too long.
    return 4.0 / (problem.loss.max_curvature * top) if top > 0 else 1.0
