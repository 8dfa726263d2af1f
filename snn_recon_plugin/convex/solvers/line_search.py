"""Lengths of a step in (W, b).

Scores are linear along a step.  So a trial of a length costs a product with the features only if weights are set to zero at a kink.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..certificate import Evaluation
from ..features import Features
from ..penalties import NewtonPenalty
from ..problem import Problem
from .newton_step import Direction

_HALVINGS = 8  # of a step
_LEAST_LENGTH = 2.0**-15  # shorter ones mean that rounding left no descent
_LENGTHS, _SLOPE_LEFT = 20, 1e-3  # steps of an exact line search, and the slope at its end over the first one


def search(problem: Problem, point: Evaluation, direction: Direction) -> tuple[Tensor, Evaluation]:
    """Return the lengths of a step, (C,) if outputs are separate programs, else (1,), and the point there; 0 if none is lower.

    Without kinks of the penalty, the length is the one with the least objective.  Else it is the longest of 1, 1/2, ... 1/128 that
    lowers it, shortened further while that is no worse: across the kinks of a smoothed hinge the longer one goes too far.  An entry
    or group on another side of the penalty's kink than both the start and the model is set to zero.
    """
    features, penalty = problem.features, problem.penalty
    assert isinstance(penalty, NewtonPenalty)  # see Newton.supports
    moved = features.scores(direction.weight, direction.bias)  # scores are linear along the direction
    if not penalty.sparse:
        sizes = exact_lengths(problem, features, (point.weight, point.scores), (direction.weight, moved))
        weight, bias = point.weight + sizes[:, None] * direction.weight, point.bias + sizes * direction.bias
        return sizes, problem.evaluate(weight, bias, point.scores + sizes * moved - features.bias_column * bias)
    level = problem.objective_by_output(point.weight, point.scores)
    level = level + 1e-14 * level.abs()
    found, seeking, size = torch.zeros_like(level), torch.ones_like(level, dtype=torch.bool), 1.0
    weight, bias, scores = point.weight, point.bias, point.scores
    for _ in range(_HALVINGS):
        linear = point.weight + size * direction.weight
        kept = penalty.same_side(linear, point.weight) | penalty.same_side(linear, direction.proximal)
        there = torch.where(kept, linear, 0.0)
        shift = point.bias + size * direction.bias
        seen = point.scores + size * moved
        dropped = there - linear
        if features.shards.broadcast_number(bool((dropped != 0).any())):
            change = -features.centring(dropped)
            shift = shift + change
            seen += features.scores(dropped, change)
        value = problem.objective_by_output(there, seen)
        lower = seeking & (value <= level)
        level, found = torch.where(lower, value, level), torch.where(lower, size, found)
        weight, bias = torch.where(lower[:, None], there, weight), torch.where(lower, shift, bias)
        scores = torch.where(lower, seen, scores)
        seeking = lower | (seeking & (found == 0))
        if not bool(seeking.any()):
            break
        size /= 2
    if not bool(found.any()):
        return found, point
    return found, problem.evaluate(weight, bias, scores - features.bias_column * bias)


def exact_lengths(
    problem: Problem,
    features: Features,
    point: tuple[Tensor, Tensor],
    step: tuple[Tensor, Tensor],
    slope_left: float = _SLOPE_LEFT,
) -> Tensor:
    """Return the lengths with the least objective, (C,) if outputs are separate programs, else (1,); by safeguarded Newton steps.

    Point and step are both weights (C, P) and scores (n, C).  The slope falls to its share ``slope_left``.
    """
    (weight, scores), (change, moved) = point, step
    penalty, separate = problem.penalty, problem.separate
    assert isinstance(penalty, NewtonPenalty)  # see Newton.supports
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

    together = features.shards.is_distributed  # a message costs more there than a second derivative that is not needed
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
