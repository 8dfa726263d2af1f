"""Columns of a design in a working precision: the products of the inner iterations.

Floating features are multiplied as they are.  Spikes kept as bool or uint8, and other integers, are converted a block of rows at a
time into one buffer.  This reads a quarter of the memory, and never makes a full copy.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .shards import ALONE, Alone

__all__ = ["BLOCK_ELEMENTS", "Columns", "totals"]

# 4 MB in float32, 8 MB in float64, to stay in the cache between conversion and product; not tuned.
BLOCK_ELEMENTS = 1_000_000
_OFF_CPU = 64  # factor on other devices, where the launch of a block costs more than its memory


@dataclass(frozen=True)
class Columns:
    """Columns of a design with centred products in the precision of ``mean``.

    Args:
        matrix: (n, A), not centred; in the working precision, or integers.
        mean: (A,).
        bias_column: (n,).
        row_weights: (n,), with sum one over all processes.
        shards: processes that share the rows.
    """

    matrix: Tensor
    mean: Tensor
    bias_column: Tensor
    row_weights: Tensor
    shards: Alone = ALONE

    @property
    def dtype(self) -> torch.dtype:
        """Working precision."""
        return self.mean.dtype

    @property
    def shared(self) -> bool:
        """True if all outputs see the same features."""
        return True

    def of_output(self, output: int) -> Columns:
        """Return the columns that one output sees."""
        del output
        return self

    def centring(self, weight: Tensor) -> Tensor:
        """Return the contribution of the centre to scores of weights (C, A), per unit of the bias column, (C,)."""
        return weight @ self.mean

    def bias_bend(self, entries: Tensor) -> Tensor:
        """Return the loss's curvature along each bias, ``sum_i w_i c_i^2 entries_ik`` for ``entries`` (n, C), (C,)."""
        return self.shards.total((self.row_weights * self.bias_column.square()) @ entries)

    def blocks(self, rows: Tensor | None = None, index: Tensor | None = None) -> Iterator[tuple[slice, Tensor]]:
        """Yield some ``rows`` (m,) and columns ``index`` (K,) of the features in the working precision, a block at a time.

        All blocks share one buffer: a block may be changed in place, and the next one overwrites it.
        """
        count = len(self.matrix) if rows is None else len(rows)
        width = self.matrix.shape[1] if index is None else len(index)
        elements = BLOCK_ELEMENTS * (1 if self.matrix.device.type == "cpu" else _OFF_CPU)
        size = min(count, max(1, elements // max(1, self.matrix.shape[1])))
        buffer = torch.empty(size, width, dtype=self.dtype, device=self.matrix.device)
        for start in range(0, count, max(1, size)):
            part = slice(start, min(start + size, count))
            source = self.matrix[part] if rows is None else self.matrix[rows[part]]
            yield part, buffer[: part.stop - start].copy_(source if index is None else source[:, index])

    def scores(self, weight: Tensor, shift: Tensor) -> Tensor:
        """Return the scores (n, C) of weights (C, A) on centred features and a bias (C,) for them."""
        result = torch.outer(self.bias_column, shift - weight @ self.mean)
        if self.matrix.dtype == self.dtype:
            return result.addmm_(self.matrix, weight.T)
        for rows, block in self.blocks():
            result[rows].addmm_(block, weight.T)
        return result

    def adjoint(self, dual: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gradient in (W, b) of ``sum_i w_i <U_i, z_i>`` for scores on centred features: (C, A) and (C,)."""
        weighted = dual * self.row_weights[:, None]
        bias = weighted.T @ self.bias_column
        result = torch.outer(bias, -self.mean)
        if self.matrix.dtype == self.dtype:
            result.addmm_(weighted.T, self.matrix)
        else:
            for rows, block in self.blocks():
                result.addmm_(weighted[rows].T, block)
        return totals(self.shards, result, bias)

    def part(self, rows: Tensor, share: float) -> Columns:
        """Return a sample of the rows (m,) that represents all: sums over it are divided by ``share``."""
        weights = self.row_weights[rows] / share
        return Columns(self.matrix[rows], self.mean, self.bias_column[rows], weights, self.shards)

    def leading_gram(self, weights: Tensor, mass: float, index: Tensor | None = None) -> Tensor:
        """Return about ``sum_i w_i weights_i x_i x_i'`` of centred features, from the rows with most of the weight.

        The diagonal is raised by the share of the weight that was left out.

        Args:
            weights: (n,), non-negative.
            mass: share of the weights, times the row weights, that the rows must carry; 1 takes all rows.
            index: (K,) columns to use; None means all.

        Returns:
            (K, K).
        """
        weights = self.row_weights * weights
        rows = leading(weights, mass)
        roots, column = weights.sqrt(), self.bias_column
        if rows is not None:
            roots, column = roots[rows], column[rows]
        mean = self.mean if index is None else self.mean[index]
        result = mean.new_zeros(len(mean), len(mean))
        for part, block in self.blocks(rows, index):
            block.addr_(column[part], mean, alpha=-1).mul_(roots[part, None])
            result.addmm_(block.T, block)
        if rows is not None:
            result.diagonal().mul_(2 - mass)
        return self.shards.total(result)


def totals(shards: Alone, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Return sums over processes of (C, A) and (C,), in one message."""
    if not shards.spread:
        return weight, bias
    both = shards.total(torch.cat([weight, bias[:, None]], 1))
    return both[:, :-1].contiguous(), both[:, -1].contiguous()


def leading(weights: Tensor, mass: float) -> Tensor | None:
    """Return the rows (m,), in order, of the largest weights that together carry ``mass``; None if those are most rows anyway.

    Rows within a tenth of the largest weight always enter: weights that are all equal, as at kinks, are all equally important.
    """
    falling, order = weights.sort(descending=True, stable=True)
    total = falling.cumsum(0)
    count = max(int(torch.searchsorted(total, mass * total[-1])) + 1, int((falling >= 0.1 * falling[0]).sum()))
    return None if mass >= 1 or count > 0.7 * len(weights) else order[:count].sort().values
