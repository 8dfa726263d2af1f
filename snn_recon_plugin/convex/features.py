"""Features of a program's rows, the bias column, and the products with both.

Scores are ``Z = Phi W' + c b'``; ``c`` (n,) is the change of each score by one unit of bias.  As b is free, ``Phi - c mu'`` with
any mu may replace ``Phi``.  The choice ``mu = Phi'c / c'c`` (centring) divides the condition number by ten or more, and changes
neither the optimum nor its value.  Products centre on the fly, and convert block by block, without a copy of the features.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..distributed import SINGLE_PROCESS, SingleProcess
from ..errors import DataError
from ..tables import IN_MEMORY, Tables
from .checks import as_column, check_matrix

_BLOCK_ELEMENTS = 1_000_000  # 4 MB in float32: a block stays in the cache between conversion and product
_CACHED = 2**16  # scores at a time: float64 sums over these stay in a processor's cache
_GRAM_COLUMNS = 256  # of a Gram matrix, made at a time
_OFF_CPU = 64  # factor on other devices, where the launch of a block costs more than its memory


class Features:
    """Features with their bias column, and products in float64.

    Args:
        matrix: (n, P), floating or integer (spikes as bool or uint8 are kept as they are); finite.
        bias_column: change of each sample's score by one unit of bias: a number for all samples (default 1.0), a tensor (n,), or
            None for a readout without a bias.
        row_weights: (n,) non-negative weights of the samples, whose scale does not matter; None (default) weighs all equally.
        shards: processes that share the rows, each with its own, possibly none; by default this process has all rows.
        tables: place of the copies that products need, in memory or in files; ``matrix`` may itself be mapped from a file.

    Attributes:
        mean: (1, P), the centre mu; zero without a bias.
        variance: (1, P) float64, weighted mean square of every centred column; exactly zero for a column that the bias spans.
        bias_column: (n, 1).

    Raises:
        DataError: shapes don't fit, or a value is not finite.

    Example:
        >>> import torch
        >>> spikes = torch.tensor([[0, 1], [1, 1], [1, 0]], dtype=torch.uint8)
        >>> Features(spikes).mean
        tensor([[0.6667, 0.6667]], dtype=torch.float64)
    """

    dtype = torch.float64
    grams: Any = None  # Gram matrices that a solver keeps between solves

    def __init__(
        self,
        matrix: Tensor,
        bias_column: float | Tensor | None = 1.0,
        row_weights: Tensor | None = None,
        *,
        shards: SingleProcess = SINGLE_PROCESS,
        tables: Tables = IN_MEMORY,
    ) -> None:
        self.shards, self.tables = shards, tables
        with shards.share_errors():
            check_matrix(matrix, may_be_empty=not self.is_whole)
            shards.check_device(matrix)
            self.matrix, self.has_bias = matrix.detach(), bias_column is not None
            self.bias_column = as_column(0.0 if bias_column is None else bias_column, "bias_column", matrix)[:, None]
            weights = as_column(1.0 if row_weights is None else row_weights, "row_weights", matrix)
            below = bool((weights < 0).any())
        shards.check_equal("features, and whether there is a bias", (self.num_features, self.has_bias))
        total = shards.sum(torch.stack([weights.sum(), weights.new_tensor(float(below))]))
        if float(total[1]) > 0 or float(total[0]) <= 0:
            found = "sample weights below zero, or all zero"
            raise DataError(found, "non-negative weights, one of them positive", "fix the weights")
        self.row_weights = weights / total[0]
        self.mean = self._centre()
        self.variance = self._variance()
        self._whole: dict[torch.dtype, Features] = {}  # columns of all features, made on first use

    @property
    def num_samples(self) -> int:
        """Rows n of this process."""
        return len(self.matrix)

    @property
    def num_features(self) -> int:
        """Columns P."""
        return int(self.matrix.shape[1])

    @property
    def device(self) -> torch.device:
        """Device of the matrix."""
        return self.matrix.device

    @property
    def is_whole(self) -> bool:
        """True if no other process has rows."""
        return not self.shards.is_distributed

    @property
    def _converts(self) -> bool:
        """True if products need the matrix in another precision."""
        return self.matrix.dtype != self.dtype

    def _operands(self, outputs: int) -> Iterator[tuple[slice, Tensor]]:
        """Return all rows block by block, ready for products with weights or dual rows of so many outputs."""
        return self._blocks() if self._converts else ((rows, self.matrix[rows]) for rows in self._row_parts(outputs))

    def _row_parts(self, outputs: int) -> Iterator[slice]:
        """Yield slices of rows whose scores stay in the cache."""
        size = max(1, _CACHED // outputs)
        for start in range(0, self.num_samples, size):
            yield slice(start, start + size)

    def _blocks(self, rows: Tensor | None = None, index: Tensor | None = None) -> Iterator[tuple[slice, Tensor]]:
        """Yield some ``rows`` (m,) and columns ``index`` (K,) in the working precision, in blocks that the next one overwrites."""
        count = self.num_samples if rows is None else len(rows)
        width = self.num_features if index is None else len(index)
        elements = _BLOCK_ELEMENTS * (1 if self.device.type == "cpu" else _OFF_CPU)
        size = max(1, min(count, elements // max(1, self.num_features)))
        buffer = torch.empty(size, width, dtype=self.dtype, device=self.device)
        for start in range(0, count, size):
            part = slice(start, min(start + size, count))
            source = self.matrix[part] if rows is None else self.matrix[rows[part]]
            yield part, buffer[: part.stop - start].copy_(source if index is None else source[:, index])

    def _centred_blocks(self, rows: Tensor | None = None, index: Tensor | None = None) -> Iterator[tuple[slice, Tensor]]:
        column = self.bias_column[:, 0] if rows is None else self.bias_column[rows, 0]
        mean = self.mean[0] if index is None else self.mean[0, index]
        for part, block in self._blocks(rows, index):
            yield part, block.addr_(column[part], mean, alpha=-1)

    def _centre(self) -> Tensor:
        """Return the centre mu = Phi'(w c) / c'(w c), in float64; zero without a bias."""
        mean = torch.zeros(1, self.num_features, dtype=torch.float64, device=self.device)
        total = self.row_mean(self.bias_column.square())
        if float(total) == 0.0:
            return mean
        weighted = self.row_weights * self.bias_column[:, 0]
        for rows, block in self._blocks():
            mean += weighted[rows] @ block
        return self.shards.sum(mean) / total

    def _variance(self) -> Tensor:
        second, scale = torch.zeros_like(self.mean), torch.zeros_like(self.mean)
        for rows, block in self._blocks():
            torch.maximum(scale, torch.linalg.vector_norm(block, ord=torch.inf, dim=0), out=scale)
            second += self.row_weights[rows] @ block.addr_(self.bias_column[rows, 0], self.mean[0], alpha=-1).square_()
        scale, second = self.shards.max(scale), self.shards.sum(second)
        # Rounding leaves about 1e-16 of the scale in a constant column.
        return torch.where(second > (1e-12 * scale).square(), second, 0.0)

    def centring(self, weight: Tensor) -> Tensor:
        """Return the contribution of the centre to scores of weights (C, P), per unit of the bias column, (C,)."""
        return (weight * self.mean).sum(1)

    def row_mean(self, values: Tensor, once: Tensor | None = None) -> Tensor:
        """Return the weighted mean over the rows of all processes: a scalar of values (n,), or (K,) of (n, K); plus ``once``."""
        return self.shards.sum(self.row_weights @ values, once)

    def row_part_of(self, make: Callable[[slice], Tensor], outputs: int) -> Tensor:
        """Return this process's part (C,) of the weighted mean of values (m, C) that ``make`` returns for m rows at a time."""
        total = self.row_weights.new_zeros(outputs)
        for rows in self._row_parts(outputs):
            total = total + self.row_weights[rows] @ make(rows)
        return total

    def mean_value(self, values: Tensor) -> float:
        """Return the weighted mean of values (n,)."""
        return float(self.row_mean(values))

    @cached_property
    def bias_sizes(self) -> tuple[Tensor, Tensor, float]:
        """Weighted means of the bias column's magnitude and square, (K,) each, and its largest magnitude."""
        magnitude = self.bias_column.abs()
        mean, square = self.row_mean(torch.cat([magnitude, magnitude.square()], 1)).chunk(2)
        largest = magnitude.max() if len(magnitude) else magnitude.new_zeros(())
        return mean, square, float(self.shards.max(largest))

    def scores(self, weight: Tensor, bias: Tensor) -> Tensor:
        """Return ``Phi W' + c b'`` (n, C) of weights (C, P) for the features as given (not centred)."""
        result = (bias[:, None] * self.bias_column.T).T  # column by column: products with few outputs are twice as fast
        if self._converts:
            active = weight.abs().sum(0).nonzero()[:, 0]
            if 4 * len(active) <= self.num_features:  # a gather costs about as much as a product: only for few columns
                return result + self.tables.taken(self.matrix, columns=active, dtype=self.dtype) @ weight[:, active].T
        for rows, block in self._operands(len(weight)):
            result[rows].addmm_(block, weight.T)
        return result

    def centred_scores(self, weight: Tensor, shift: Tensor) -> Tensor:
        """Return the scores (n, C) of weights (C, P) on centred features, and a bias (C,) for them."""
        return self.scores(weight, shift - self.centring(weight))

    def adjoint(self, dual: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gradient in (W, b) of ``sum_i w_i <U_i, z_i>``, (C, P) and (C,); zero for columns that the bias spans."""
        result = torch.zeros(dual.shape[1], self.num_features, dtype=self.dtype, device=self.device)
        bias = result.new_zeros(len(result))
        for rows, block in self._operands(len(result)):
            weighted = (dual[rows] * self.row_weights[rows, None]).T
            bias += (weighted @ self.bias_column[rows])[:, 0]
            result.addmm_(weighted, block)
        centred = result.addr_(bias, self.mean[0], alpha=-1)
        return self.shards.sum_pair(torch.where(self.variance > 0, centred, 0.0), bias)

    def second_moments(self, weights: Tensor) -> Tensor:
        """Return ``sum_i w_i weights_ik x_ij^2`` of centred features for weights (n, K), (K, P); zero for constant columns."""
        result = torch.zeros(weights.shape[1], self.num_features, dtype=self.dtype, device=self.device)
        weighted = weights.to(self.dtype) * self.row_weights[:, None]
        for rows, block in self._centred_blocks():
            result.addmm_(weighted[rows].T, block.square_())
        return torch.where(self.variance > 0, self.shards.sum(result), 0.0)

    def gram(self, weights: Tensor, rows: Tensor | None = None, index: Tensor | None = None) -> Tensor:
        """Return ``sum_i w_i weights_i x_i x_i'`` of centred features for weights (n,), (K, K), over some rows and columns (K,)."""
        roots = (self.row_weights * weights).sqrt() if rows is None else (self.row_weights * weights)[rows].sqrt()
        width = self.num_features if index is None else len(index)
        result = self.mean.new_zeros(width, width)
        for part, block in self._centred_blocks(rows, index):
            block.mul_(roots[part, None])
            result.addmm_(block.T, block)
        return self.shards.sum(result)

    def centred_rows(self, rows: Tensor, index: Tensor | None = None) -> Tensor:
        """Return some rows (m,) and columns (K,) of the centred features in the working precision, (m, K)."""
        matrix, mean = self.matrix[rows], self.mean[0]
        if index is not None:
            matrix, mean = matrix[:, index], mean[index]
        return matrix.to(self.dtype) - self.bias_column[rows] * mean

    def scores_of(self, matrix: Tensor, bias_column: float | Tensor | None, weight: Tensor, bias: Tensor) -> Tensor:
        """Return scores of other samples, with features (m, P) and a bias column that is a number, (m,) or None, block by block."""
        if matrix.shape[1:] != (self.num_features,):
            needed = f"a matrix (samples, {self.num_features}), as those fitted"
            raise DataError(f"features of shape {tuple(matrix.shape)}", needed, "pass the same features of all samples")
        column = as_column(0.0 if bias_column is None else bias_column, "bias_column", matrix)
        blocks = [matrix[i : i + 4096].double() @ weight.T for i in range(0, max(1, len(matrix)), 4096)]
        return torch.cat(blocks) + column[:, None] * bias

    def columns(self, index: Tensor | None, dtype: torch.dtype) -> Features:
        """Return some columns (K,), all if ``index`` is None, for products in ``dtype``; integer features stay integers."""
        if index is None and dtype in self._whole:
            return self._whole[dtype]
        stored = dtype if self.matrix.is_floating_point() else self.matrix.dtype
        found = self._replaced(
            dtype=dtype,
            matrix=self.tables.taken(self.matrix, columns=index, dtype=stored).contiguous(),
            mean=(self.mean if index is None else self.mean[:, index]).to(dtype),
            variance=self.variance if index is None else self.variance[:, index],
            bias_column=self.bias_column.to(dtype),
            row_weights=self.row_weights.to(dtype),
        )
        if index is None:
            self._whole[dtype] = found
        return found

    def continue_from(self, other: Features) -> None:
        """Take over the Gram matrices that a solver keeps for the same rows with other weights."""
        for dtype, columns in other._whole.items():
            if columns.grams is not None:
                self.columns(None, dtype).grams = columns.grams

    def part(self, rows: Tensor, share: float) -> Features:
        """Return a sample of the rows (m,) that represents all: sums over it are divided by ``share``."""
        weights = self.row_weights[rows] / share
        return self._replaced(matrix=self.tables.taken(self.matrix, rows), bias_column=self.bias_column[rows], row_weights=weights)

    def _replaced(self, **changes: object) -> Features:
        """Return a copy with other attributes, and without what was made from them."""
        other = copy.copy(self)
        for name in ("bias_sizes", "grams"):
            other.__dict__.pop(name, None)
        other.__dict__.update(changes, _whole={})
        return other


def gram_of(values: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return the Gram matrix (K, K) of values (m, K), their rows times ``weights`` (m,); its lower half is copied."""
    width, weighted = values.shape[1], values if weights is None else values * weights[:, None]
    found = values.new_empty(width, width)
    for start in range(0, width, _GRAM_COLUMNS):
        stop = start + _GRAM_COLUMNS
        torch.mm(weighted[:, start:stop].T, values[:, start:], out=found[start:stop, start:])
        found[stop:, start:stop] = found[start:stop, stop:].T
    return found
