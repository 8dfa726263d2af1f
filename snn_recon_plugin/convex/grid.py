r"""Weights on a grid: whole numbers times a scale, rounded one column at a time while the columns after it make up for the error.

Around the optimum W the objective is a parabola, for each output ``1/2 (w - v)' H (w - v)`` with H the second derivative after the
bias is solved.  Columns are rounded in the order of falling diagonal of H.  After each of them the others are solved again, which
takes one row of a Cholesky factor of the inverse of H.  Source: GPTQ (Frantar et al. 2023, arXiv 2210.17323).  A descent follows:
changes of whole numbers and of scales that lower the true objective.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .problem import Evaluation, Problem

_SCALES = [2.0 ** (-step / 4) for step in range(-1, 13)]  # tried, relative to the largest weight's; 3 bits or fewer need small ones
_COLUMNS = 1024  # of a block that is rounded together: a factor takes their cube
_ENTRIES = 2**26  # of the second derivatives of a block that are held, 512 MiB; outputs beyond that share their mean
_STEPS = 100  # of a descent at most; most end after twenty to forty
_FIRST = 16  # whole numbers of an output that change in the first step
_LEAST = 1e-9  # of the loss at zero weights: a smaller fall is rounding


@dataclass(frozen=True)
class Grid:
    """Whole numbers from ``-largest`` to ``largest``, times a scale."""

    bits: int  # of the whole numbers with their sign, at least 2
    ratios: Tensor | None = None  # (C,), of the outputs' scales, for one scale of the whole weight; None: every output has its own

    @property
    def largest(self) -> int:
        """Largest whole number, ``2^(bits - 1) - 1``: the grid is symmetric."""
        return int(2 ** (self.bits - 1) - 1)

    def round(self, values: Tensor) -> Tensor:
        """Return the nearest whole numbers of the grid."""
        return values.round().clamp(-self.largest, self.largest)

    def widest(self, weight: Tensor) -> Tensor:
        """Return the scales (C,) that put the largest weights (C, P) on the grid's ends; 1 for an output of zeros."""
        largest = weight.abs().amax(1) / self.largest
        if self.ratios is not None:
            largest = (largest / self.ratios).max() * self.ratios
        return torch.where(largest > 0, largest, 1.0)

    def together(self, values: Tensor) -> Tensor:
        """Sum values (*, C) of outputs that share one scale; those with a scale each stay."""
        return values if self.ratios is None else values.sum(-1, keepdim=True).expand_as(values)


@dataclass(frozen=True)
class GridPoint:
    """Weight on a grid, float64."""

    integers: Tensor  # (C, P), whole numbers
    scale: Tensor  # (C,), positive
    bias: Tensor  # (C,)

    @property
    def weight(self) -> Tensor:
        """Return the weight (C, P)."""
        return self.scale[:, None] * self.integers


def round_columns(problem: Problem, weight: Tensor, bias: Tensor, grid: Grid) -> GridPoint:
    """Round the optimum W of a smooth program with ridge column by column, by the scales that cost least; its bias is exact."""
    point = problem.evaluate(weight, bias)
    scales = torch.tensor(_SCALES).to(weight)[:, None] * grid.widest(weight)  # (K, C)
    cost, parts = torch.zeros_like(scales), []
    for columns in torch.split(torch.arange(weight.shape[1], device=weight.device), _COLUMNS):
        bends, part = second_derivatives(problem, point, columns), weight[:, columns]
        rounded = _round_block(part, bends, scales, grid)
        errors = scales[..., None] * rounded - part
        cost += torch.einsum("kcp,cpq,kcq->kc", errors, bends.expand(len(weight), -1, -1), errors)
        parts.append(rounded)
    best, outputs = grid.together(cost).argmin(0), torch.arange(len(weight), device=weight.device)
    integers, scale = torch.cat(parts, 2)[best, outputs], scales[best, outputs]
    return GridPoint(integers, scale, problem.evaluate(scale[:, None] * integers, point.bias).bias)


def second_derivatives(problem: Problem, point: Evaluation, columns: Tensor) -> Tensor:
    """Return the second derivative in some weights (K,), bias solved, (C, K, K); their mean (1, K, K) if memory is short."""
    curvature = problem.loss.curvature(point.scores, problem.targets).entries()
    if problem.features.shared and curvature.shape[1] * len(columns) ** 2 > _ENTRIES:
        curvature = curvature.mean(1, keepdim=True)
    added, found = problem.strength * problem.penalty.hessian_diagonal(point.weight[:, columns]), []
    for output, bends in enumerate(curvature.unbind(1)):
        features = problem.features.of_output(output)
        gram = features.gram(bends, index=columns)
        steep = bends[:, None] * features.bias_column
        along, across = features.adjoint(steep)[0][0, columns], float(features.row_mean(steep * features.bias_column))
        if across > 0:
            gram = gram - torch.outer(along, along) / across
        found.append(gram + torch.diag(added[output]))
    return torch.stack(found)


def _round_block(weight: Tensor, bends: Tensor, scales: Tensor, grid: Grid) -> Tensor:
    """Round a weight (C, P) with second derivatives (C, P, P), or (1, P, P), at scales (K, C); return whole numbers (K, C, P)."""
    order = bends.diagonal(dim1=1, dim2=2).argsort(1, descending=True)
    ordered = torch.stack([own[places][:, places] for own, places in zip(bends, order, strict=True)])
    factor = torch.linalg.cholesky(torch.linalg.inv(ordered), upper=True)
    factor = factor / factor.diagonal(dim1=1, dim2=2)[..., None]
    places = order.expand_as(weight).expand(len(scales), -1, -1)
    left = weight.expand(len(scales), -1, -1).gather(2, places)
    rounded = torch.empty_like(left)
    for column in range(weight.shape[1]):
        rounded[..., column] = grid.round(left[..., column] / scales)
        error = left[..., column] - scales * rounded[..., column]
        left[..., column:] -= error[..., None] * factor[:, column, column:]
    return torch.empty_like(rounded).scatter_(2, places, rounded)


def descend_on_grid(problem: Problem, start: GridPoint, grid: Grid) -> GridPoint:
    """Lower the objective of a point on a grid until no single change that a parabola promises does.

    Each step changes the whole numbers that promise most, in each output alone if outputs are separate programs, else in all
    together.  A step that does not lower the objective is taken back, and the next one changes half as many numbers.  A single
    change that fails is not tried again.  Each step begins with scales and bias solved again.
    """
    integers, scale, outputs = start.integers.clone(), start.scale.clone(), len(start.scale)
    here, groups = problem.evaluate(start.weight, start.bias), outputs if problem.independent_outputs else 1
    values = problem.objective_by_output(here.weight, here.scores)
    counts, open_ = values.new_full((groups,), _FIRST), torch.ones_like(integers, dtype=torch.bool)
    least = _LEAST * problem.zero_loss
    for _ in range(_STEPS):
        scale, here = _solve_scale(problem, here, integers, scale, grid)
        values = problem.objective_by_output(here.weight, here.scores)
        moves, gains = _promises(problem, here, integers, scale, grid)
        gains = torch.where(open_ & (gains > least), gains, 0.0).reshape(groups, -1)
        taken = (gains.argsort(1, descending=True).argsort(1) < counts[:, None]) & (gains > 0)  # the largest ones of each row
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


def _promises(problem: Problem, here: Evaluation, integers: Tensor, scale: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """Return the best change of each whole number alone by a parabola, and the fall of the objective that it promises, (C, P)."""
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
    slope = ((here.gradient + problem.strength * problem.penalty.gradient(here.weight)) * integers).sum(1)
    bend = features.row_mean(curvature * raw.square()) + problem.strength * integers.square().sum(1)
    ratios = torch.ones_like(scale) if grid.ratios is None else grid.ratios
    slope, bend = grid.together(ratios * slope), grid.together(ratios.square() * bend)
    changed = scale - ratios * torch.where(bend > 0, slope / bend, 0.0)
    if not bool((changed > 0).all()):
        return scale, here
    trial = problem.evaluate(changed[:, None] * integers, here.bias)
    return (changed, trial) if trial.objective < here.objective else (scale, here)
