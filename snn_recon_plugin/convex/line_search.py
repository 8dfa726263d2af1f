"""The projected line search of Newton steps: an entry, or a group, that has crossed the penalty's kink stays at zero."""

from __future__ import annotations

import torch
from torch import Tensor

from .certificate import Evaluation
from .newton import Direction
from .problem import Problem

__all__ = ["search"]

_HALVINGS = 8


def search(problem: Problem, point: Evaluation, direction: Direction) -> tuple[float, Evaluation]:
    """Goes the longest of 1, 1/2, ... 1/128 that lowers the objective, and further on while shorter is better.

    Where two lengths are equally low the shorter is taken: across the kinks of a smoothed hinge the longer one goes too far.

    Scores are linear along the direction; only entries that are projected to zero need a product of their own.

    Args:
        problem: the program.
        point: where to start.
        direction: where to go.

    Returns:
        The length and the point there; 0 and the start where none lowers the objective.
    """
    design = problem.design
    moved = design.scores(direction.weight, direction.bias)
    level = point.objective + 1e-14 * abs(point.objective)
    found, size = 0.0, 1.0
    best: tuple[Tensor, Tensor, Tensor] | None = None
    for _ in range(_HALVINGS):
        linear = point.weight + size * direction.weight
        weight = _projected(problem, linear, point.weight, direction.ahead)
        bias = point.bias + size * direction.bias
        scores = point.scores + size * moved
        dropped = weight - linear
        if design.shards.decided(bool((dropped != 0).any())):
            shift = -(dropped @ design.mean) if design.has_bias else torch.zeros_like(bias)
            bias = bias + shift
            scores += design.scores(dropped, shift)
        value = design.shards.decided(problem.mean_loss(scores) + problem.strength * float(problem.penalty.value(weight)))
        if value <= level:
            level, found, best = value, size, (weight, bias, scores)
        elif found:
            break
        size /= 2
    if best is None:
        return 0.0, point
    weight, bias, scores = best
    return found, problem.evaluate(weight, bias, scores - torch.outer(design.bias_column, bias))


def _projected(problem: Problem, weight: Tensor, before: Tensor, ahead: Tensor) -> Tensor:
    """``weight`` with zeros where it has left the side of the kink on which both its start and the model lay."""
    kept = problem.penalty.same_side(weight, before) | problem.penalty.same_side(weight, ahead)
    return torch.where(kept, weight, 0.0)
