"""The projected line search of Newton steps: an entry, or a group, that has crossed the penalty's kink stays at zero."""

from __future__ import annotations

import torch
from torch import Tensor

from .certificate import Evaluation
from .newton import Direction
from .problem import Problem

__all__ = ["search"]

_HALVINGS = 8


def search(problem: Problem, point: Evaluation, direction: Direction) -> tuple[Tensor, Evaluation]:
    """Goes the longest of 1, 1/2, ... 1/128 that lowers the objective, and further on while shorter is better.

    Where outputs are programs of their own, each goes as far as is best for it.  Where two lengths are equally low the shorter is
    taken: across the kinks of a smoothed hinge the longer one goes too far.

    Scores are linear along the direction; only entries that are projected to zero need a product of their own.

    Args:
        problem: the program.
        point: where to start.
        direction: where to go.

    Returns:
        The lengths, (C,) or (1,), and the point there; 0 where none lowers the objective.
    """
    design = problem.design
    moved = design.scores(direction.weight, direction.bias)
    level = problem.parts(point.weight, point.scores)
    level = level + 1e-14 * level.abs()
    found, seeking, size = torch.zeros_like(level), torch.ones_like(level, dtype=torch.bool), 1.0
    weight, bias, scores = point.weight, point.bias, point.scores
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
    """``weight`` with zeros where it has left the side of the kink on which both its start and the model lay."""
    kept = problem.penalty.same_side(weight, before) | problem.penalty.same_side(weight, ahead)
    return torch.where(kept, weight, 0.0)
