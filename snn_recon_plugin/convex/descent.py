"""Descent on a grid: changes of whole numbers and of scales that lower the true objective of a smooth program."""

from __future__ import annotations

import torch
from torch import Tensor

from .certificate import Evaluation
from .grid import Grid, GridPoint
from .penalties import NewtonPenalty
from .problem import Problem

_STEPS = 100  # at most; most end after twenty to forty
_FIRST = 16  # whole numbers of an output that change in the first step
_LEAST = 1e-9  # of the loss at zero weights: a smaller fall is rounding


def descend_on_grid(problem: Problem, start: GridPoint, grid: Grid) -> GridPoint:
    """Lower the objective of a point on a grid until no single change that a parabola promises does.

    Each step changes the whole numbers that promise most, in each output alone if outputs are separate programs, else in all
    together.  A step that does not lower the objective is taken back, and the next one changes half as many numbers.  A single
    change that fails is not tried again.  Each step begins with scales and bias solved again.
    """
    integers, scale, outputs = start.integers.clone(), start.scale.clone(), len(start.scale)
    here, groups = problem.evaluate(start.weight, start.bias), outputs if problem.separate else 1
    values = problem.objective_by_output(here.weight, here.scores)
    counts, open_ = values.new_full((groups,), _FIRST), torch.ones_like(integers, dtype=torch.bool)
    least = _LEAST * problem.zero_loss
    for _ in range(_STEPS):
        scale, here = _solve_scale(problem, here, integers, scale, grid)
        values = problem.objective_by_output(here.weight, here.scores)
        moves, gains = _promises(problem, here, integers, scale, grid)
        gains = torch.where(open_ & (gains > least), gains, 0.0).reshape(groups, -1)
        taken = _largest(gains, counts)
        if not bool(taken.any()):
            break
        moved = torch.where(taken.reshape(integers.shape), moves, 0.0)
        trial = problem.evaluate(scale[:, None] * (integers + moved), here.bias)
        better = problem.objective_by_output(trial.weight, trial.scores) < values - least
        single = taken.sum(1) == 1
        open_ &= ~(taken & (single & ~better)[:, None]).reshape(integers.shape)
        counts = torch.where(better, 2 * counts, (torch.minimum(counts, taken.sum(1)) / 2).floor().clamp_min(1))
        if bool(better.any()):
            integers += torch.where(better.expand(outputs)[:, None], moved, 0.0)
            here = problem.evaluate(scale[:, None] * integers, trial.bias)
    return GridPoint(integers, scale, here.bias)


def _largest(gains: Tensor, counts: Tensor) -> Tensor:
    """Return True for the ``counts`` (G,) largest positive gains (G, N) of each row."""
    places = gains.argsort(1, descending=True).argsort(1)
    return (places < counts[:, None]) & (gains > 0)


def _promises(problem: Problem, here: Evaluation, integers: Tensor, scale: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """Return the best change of each whole number alone by a parabola, and the fall of the objective that it promises, (C, P)."""
    assert isinstance(problem.penalty, NewtonPenalty)
    curvature = problem.loss.curvature(here.scores, problem.targets).entries()
    slope = here.gradient + problem.strength * problem.penalty.gradient(here.weight)
    bend = problem.features.second_moments(curvature) + problem.strength * problem.penalty.hessian_diagonal(here.weight)
    moves = grid.round(integers - slope / (bend * scale[:, None])) - integers
    steps = scale[:, None] * moves
    return moves, -(slope * steps + 0.5 * bend * steps.square())


def _solve_scale(problem: Problem, here: Evaluation, integers: Tensor, scale: Tensor, grid: Grid) -> tuple[Tensor, Evaluation]:
    """Return the scales after a Newton step that lowers the objective, and the point there; as they are if none does."""
    features, column = problem.features, problem.features.bias_column
    curvature = problem.loss.curvature(here.scores, problem.targets).entries()
    raw = features.scores(integers, torch.zeros_like(scale))
    sums = features.row_mean(torch.cat([curvature * column * raw, curvature * column.square() * torch.ones_like(raw)], 1))
    across, whole = sums.chunk(2)
    raw = raw - column * torch.where(whole > 0, across / whole, 0.0)
    assert isinstance(problem.penalty, NewtonPenalty)
    slope = ((here.gradient + problem.strength * problem.penalty.gradient(here.weight)) * integers).sum(1)
    bend = features.row_mean(curvature * raw.square()) + problem.strength * integers.square().sum(1)
    ratios = torch.ones_like(scale) if grid.ratios is None else grid.ratios
    slope, bend = grid.together(ratios * slope), grid.together(ratios.square() * bend)
    changed = scale - ratios * torch.where(bend > 0, slope / bend, 0.0)
    if not bool((changed > 0).all()):
        return scale, here
    trial = problem.evaluate(changed[:, None] * integers, here.bias)
    return (changed, trial) if trial.objective < here.objective else (scale, here)
