r"""Weights on a grid: whole numbers times a scale, rounded one column at a time while the columns after it make up for the error.

Around the optimum W the objective is a parabola, for each output ``1/2 (w - v)' H (w - v)`` with H the second derivative after the
bias is solved.  Columns are rounded in the order of falling diagonal of H.  After each of them the others are solved again, which
takes one row of a Cholesky factor of the inverse of H.  Source: GPTQ (Frantar et al. 2023, arXiv 2210.17323).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .problem import Evaluation, Problem

_SCALES = [2.0 ** (-step / 4) for step in range(-1, 13)]  # tried, relative to the largest weight's; 3 bits or fewer need small ones
_COLUMNS = 1024  # of a block that is rounded together: a factor takes their cube
_ENTRIES = 2**26  # of the second derivatives of a block that are held, 512 MiB; outputs beyond that share their mean


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
    if grid.ratios is not None:  # outputs that share one scale
        cost = cost.sum(1, keepdim=True).expand_as(cost)
    best, outputs = cost.argmin(0), torch.arange(len(weight), device=weight.device)
    integers, scale = torch.cat(parts, 2)[best, outputs], scales[best, outputs]
    return GridPoint(integers, scale, problem.evaluate(scale[:, None] * integers, point.bias).bias)


def second_derivatives(problem: Problem, point: Evaluation, columns: Tensor) -> Tensor:
    """Return the second derivative in some weights (K,), bias solved, (C, K, K); their mean (1, K, K) if memory is short."""
    curvature = problem.loss.curvature(point.scores, problem.targets).entries()
    if curvature.shape[1] * len(columns) ** 2 > _ENTRIES:
        curvature = curvature.mean(1, keepdim=True)
    added, features, found = problem.strength * problem.penalty.hessian_diagonal(point.weight[:, columns]), problem.features, []
    for output, bends in enumerate(curvature.unbind(1)):
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
