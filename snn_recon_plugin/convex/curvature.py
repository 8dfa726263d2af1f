"""Second derivatives of losses in the scores: one small matrix a row, factored so that products are cheap."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Curvature:
    """Second derivative of a loss at given scores, one C x C matrix a row.

    Row i's matrix is ``diag(diagonal_i) - rank_one_i rank_one_i'``.  Losses that are sums over classes have a diagonal only.
    """

    diagonal: Tensor  # (n, C), non-negative
    rank_one: Tensor | None = None  # (n, C)

    def product(self, scores: Tensor) -> Tensor:
        """Return each row's matrix times that row of ``scores`` (n, C)."""
        result = self.diagonal * scores
        if self.rank_one is not None:
            result = result - self.rank_one * (self.rank_one * scores).sum(1, keepdim=True)
        return result

    def entries(self) -> Tensor:
        """Return the diagonals of the matrices, (n, C): the curvature in each class's own score."""
        return self.diagonal if self.rank_one is None else self.diagonal - self.rank_one.square()

    def weighted_sum(self, weights: Tensor, factors: Tensor) -> Tensor:
        """Return the sum over rows of ``weights_i D_i H_i D_i`` with H_i row i's matrix and D_i its factors, (n, C) or (n, 1)."""
        factors = factors.expand_as(self.diagonal)
        total = torch.diag(weights @ (self.diagonal * factors.square()))
        if self.rank_one is not None:
            scaled = self.rank_one * factors
            total = total - (scaled * weights[:, None]).T @ scaled
        return total

    def part(self, rows: Tensor) -> Curvature:
        """Return the matrices of some rows (m,)."""
        return Curvature(self.diagonal[rows], None if self.rank_one is None else self.rank_one[rows])

    def to(self, dtype: torch.dtype) -> Curvature:
        """Return the same curvature in another precision."""
        return Curvature(self.diagonal.to(dtype), None if self.rank_one is None else self.rank_one.to(dtype))


def zero_of_slope(ends: Tensor, rate: Tensor, start: Tensor) -> Tensor:
    """Return where a piecewise linear, ascending slope is zero, (C,).

    It is ``start`` (C,) on the far left, and row i adds the rate (n, C) between its two ends (2, n, C).
    """
    order = torch.cat([ends.amin(0), ends.amax(0)]).sort(0)
    rates = torch.cat([rate, -rate]).gather(0, order.indices).cumsum(0)
    rises = rates[:-1] * order.values.diff(dim=0)
    slopes = start + torch.cat([torch.zeros_like(rises[:1]), rises]).cumsum(0)
    # Start at the last bend with a slope of at most zero, and interpolate linearly to slope zero.
    last = ((slopes <= 0).sum(0) - 1).clamp(0, len(slopes) - 2)[None]
    slope, lift = slopes.gather(0, last), rises.gather(0, last)
    share = torch.where(lift > 0, -slope / lift, 0.0).clamp(0, 1)
    here, there = order.values.gather(0, last), order.values.gather(0, last + 1)
    return (here + share * (there - here))[0]
