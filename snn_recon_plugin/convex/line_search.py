"""Projected line search of Newton steps: an entry or group that crosses the penalty's kink stays at zero."""

from __future__ import annotations

import torch
from torch import Tensor

from .certificate import Evaluation
from .newton import Direction
from .problem import Problem

__all__ = ["search"]

_HALVINGS = 8


def search(problem: Problem, point: Evaluation, direction: Direction) -> tuple[Tensor, Evaluation]:
    """Take the longest step of 1, 1/2, ... 1/128 that lowers the objective, and shorten it further while that is better.

    If outputs are separate programs, each takes its own best length.  Of two equally good lengths the shorter is taken: across the
    kinks of a smoothed hinge the longer one goes too far.

    Scores are linear along the direction; only entries that are projected to zero need an extra product.

    Args:
        problem: the program.
        point: start of the search.
        direction: the step.

    Returns:
        The lengths, (C,) or (1,), and the point there; length 0 if none lowers the objective.
    """
    design = problem.design
    moved = design.scores(direction.weight, direction.bias)
    level = problem.parts(point.weight, point.scores)
    level = level + 1e-14 * level.abs()
    found = torch.zeros_like(level)
    seeking = torch.ones_like(level, dtype=torch.bool)
    size = 1.0
    weight = point.weight
    bias = point.bias
    scores = point.scores
    for _ in range(_HALVINGS):
        linear = point.weight + size * direction.weight
        there = _projected(problem, linear, point.weight, direction.ahead)
        shift = point.bias + size * direction.bias
        seen = point.scores + size * moved
        dropped = there - linear
        if design.shards.decided(bool((dropped != 0).any())):
            change = -design.centring(dropped) if design.has_bias else torch.zeros_like(shift)
            shift = shift + change
            seen += design.scores(dropped, change)
        value = problem.parts(there, seen)
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
    return found, problem.evaluate(weight, bias, scores - design.biases(bias))


def _projected(problem: Problem, weight: Tensor, before: Tensor, ahead: Tensor) -> Tensor:
    """Return ``weight`` with zeros at entries on another side of the kink than both the start and the model."""
    kept = problem.penalty.same_side(weight, before) | problem.penalty.same_side(weight, ahead)
    return torch.where(kept, weight, 0.0)
