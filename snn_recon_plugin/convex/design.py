"""Design matrix of a readout program: features of the samples, the bias column, and products with both.

Scores are ``Z = Phi W' + c b'``.  ``Phi`` (n, P) holds one row of features a sample; ``c`` (n,) is the change of each score by one
unit of bias.  Because b is free, ``Phi - c mu'`` with any mu may replace ``Phi``.  The choice ``mu = Phi'c / c'c`` (centring)
divides the condition number by ten or more, and changes neither the optimum nor its value.  All products centre on the fly,
without a copy.

Iterations run in float32 on the features as they are.  Objective, gradient and certificate are computed in float64, block by block,
without a float64 copy of the features.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from ..errors import DataError
from .columns import BLOCK_ELEMENTS, Columns
from .curvature import Curvature
from .rough import RoughColumns, rough
from .shards import ALONE, Alone

__all__ = ["Design"]


class Design:
    """Features with their bias column.

    Args:
        features: (n, P), floating or integer (spikes as bool or uint8 are kept as they are); finite.
        bias_column: change of each sample's score by one unit of bias: a number for all samples, a tensor (n,), or None for a
            readout without a bias.
        row_weights: (n,) non-negative weights of the samples; None weighs all equally.  They are normalised to sum to one.
        shards: processes that share the rows, of which this one holds the given ones; by default this process has all rows.

    Raises:
        DataError: shapes don't fit, or a value is not finite.

    Example:
        >>> import torch
        >>> spikes = torch.tensor([[0, 1], [1, 1], [1, 0]], dtype=torch.uint8)
        >>> Design(spikes).mean
        tensor([0.6667, 0.6667], dtype=torch.float64)
    """

    shared = True  # all outputs see the same features

    def __init__(
        self,
        features: Tensor,
        bias_column: float | Tensor | None = 1.0,
        row_weights: Tensor | None = None,
        *,
        shards: Alone = ALONE,
    ) -> None:
        self.shards = shards
        with shards.together():
            weights = self._take(features, bias_column, row_weights)
        shards.alike("features, and whether there is a bias", (self.num_features, self.has_bias))
        self.row_weights = weights / shards.total(weights.sum())
        self.mean = self._centre()
        self.variance = self._variance()
        self._rough: Columns | RoughColumns | None = None  # of all columns in float32, made on first use

    def _take(self, features: Tensor, bias_column: float | Tensor | None, row_weights: Tensor | None) -> Tensor:
        """Check and store the rows of this process; return their weights, not normalised yet."""
        _check_features(features)
        self.shards.check_device(features)
        self.features = features
        self.num_samples, self.num_features = features.shape
        self.device = features.device
        self.has_bias = bias_column is not None
        self.bias_column = self._as_column(0.0 if bias_column is None else bias_column, "bias_column")
        weights = self._as_column(1.0 if row_weights is None else row_weights, "row_weights")
        if bool((weights < 0).any()) or float(weights.sum()) <= 0:
            raise DataError(
                "sample weights below zero, or all zero", "non-negative weights, at least one positive", "fix the weights"
            )
        return weights

    def _as_column(self, value: float | Tensor, name: str) -> Tensor:
        column = torch.as_tensor(value, dtype=torch.float64, device=self.device)
        if column.dim() == 0:
            column = column.expand(self.num_samples).contiguous()
        if column.shape != (self.num_samples,) or not bool(torch.isfinite(column).all()):
            raise DataError(
                f"{name} of shape {tuple(column.shape)}",
                f"a finite number, or {self.num_samples} of them, one a sample",
                f"pass {name} as a float or as a tensor of shape ({self.num_samples},)",
            )
        return column

    def blocks(self) -> Iterator[tuple[slice, Tensor]]:
        """Yield rows of the features in float64, a block at a time.

        All blocks share one buffer: a block may be changed in place, and the next one overwrites it.  (A fresh 48 MB float64 copy
        took 17 ms, the product with it 5 ms: n=6000, P=1000, 2 cores.)
        """
        size = min(self.num_samples, max(1, BLOCK_ELEMENTS // self.num_features))
        buffer = torch.empty(size, self.num_features, dtype=torch.float64, device=self.device)
        for start in range(0, self.num_samples, size):
            rows = slice(start, min(start + size, self.num_samples))
            yield rows, buffer[: rows.stop - start].copy_(self.features[rows])

    def _centre(self) -> Tensor:
        """Return the centre mu = Phi'(w c) / c'(w c), in float64; zero without a bias."""
        weighted = self.row_weights * self.bias_column
        total = self.shards.total(weighted @ self.bias_column)
        if not self.has_bias or float(total) == 0.0:
            return torch.zeros(self.num_features, dtype=torch.float64, device=self.device)
        mean = torch.zeros(self.num_features, dtype=torch.float64, device=self.device)
        for rows, block in self.blocks():
            mean += weighted[rows] @ block
        return self.shards.total(mean) / total

    def _variance(self) -> Tensor:
        """Return the weighted mean square of every centred column, (P,); exactly zero for a column that the bias already spans."""
        second = torch.zeros(self.num_features, dtype=torch.float64, device=self.device)
        scale = torch.zeros_like(second)
        for rows, block in self.blocks():
            torch.maximum(scale, torch.linalg.vector_norm(block, ord=torch.inf, dim=0), out=scale)
            second += self.row_weights[rows] @ block.addr_(self.bias_column[rows], self.mean, alpha=-1).square_()
        scale, second = self.shards.largest(scale), self.shards.total(second)
        # Rounding leaves about 1e-16 of the scale in a constant column.
        return torch.where(second > (1e-12 * scale).square(), second, 0.0)

    @property
    def largest_variance(self) -> Tensor:
        """Largest variance of each feature over the outputs, (P,)."""
        return self.variance

    def centring(self, weight: Tensor) -> Tensor:
        """Return the contribution of the centre to scores of weights (C, P), per unit of the bias column, (C,)."""
        return weight @ self.mean

    def biases(self, bias: Tensor) -> Tensor:
        """Return the contribution of a bias (C,) to the scores, (n, C)."""
        return torch.outer(self.bias_column, bias)

    def bias_slope(self, dual: Tensor) -> Tensor:
        """Return the gradient in b of ``sum_i w_i <U_i, z_i>`` for rows U (n, C), (C,)."""
        return self.shards.total(dual.T @ (self.row_weights * self.bias_column))

    @property
    def bias_sizes(self) -> Tensor:
        """Mean size of the bias column, a scalar, or (C,) if each output has its own."""
        return self.shards.total((self.row_weights * self.bias_column).abs().sum())

    def bias_squares(self) -> Tensor:
        """Return the mean square of the bias column, a scalar, or (C,) if each output has its own."""
        return self.shards.total((self.row_weights * self.bias_column * self.bias_column).sum())

    def bias_curvature(self, curvature: Curvature) -> Tensor:
        """Return the second derivative in b of a loss with this curvature at the scores, (C, C)."""
        return self.shards.total(curvature.weighted_sum(self.row_weights * self.bias_column * self.bias_column))

    def second_moments(self, weights: Tensor) -> Tensor:
        """Return ``sum_i w_i weights_ik x_ij^2`` of centred features for weights (n, K), (K, P) float64.

        It is exactly zero for constant columns.
        """
        result = torch.zeros(weights.shape[1], self.num_features, dtype=torch.float64, device=self.device)
        weighted = weights.double() * self.row_weights[:, None]
        for rows, block in self.blocks():
            result.addmm_(weighted[rows].T, block.addr_(self.bias_column[rows], self.mean, alpha=-1).square_())
        return torch.where(self.variance > 0, self.shards.total(result), 0.0)

    def scores(self, weight: Tensor, bias: Tensor) -> Tensor:
        """Return ``Phi W' + c b'`` in float64, (n, C), of weights (C, P) for the features as given (not centred)."""
        result = self.biases(bias)
        active = weight.abs().sum(0).nonzero()[:, 0]
        if 4 * len(active) <= self.num_features:  # a gather costs about as much as a product: worth it only for few columns
            return result + self._gathered(active) @ weight[:, active].T
        for rows, block in self.blocks():
            result[rows] += block @ weight.T
        return result

    def _gathered(self, columns: Tensor) -> Tensor:
        return self.features[:, columns].double()

    def scores_of(self, features: Tensor, bias_column: float | Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Return scores of other samples in float64, block by block.

        Args:
            features: (m, P).
            bias_column: a number, or (m,).
            weight: (C, P).
            bias: (C,).
        """
        if not bool(torch.isfinite(weight).all()):
            return torch.full((len(features), len(weight)), math.nan, dtype=torch.float64, device=weight.device)
        column = torch.as_tensor(bias_column, dtype=torch.float64, device=features.device)
        blocks = [features[i : i + 4096].double() @ weight.T for i in range(0, len(features), 4096)]
        return torch.cat(blocks) + (column[:, None] if column.dim() else column) * bias

    def adjoint(self, dual: Tensor) -> Tensor:
        """Return ``sum_i w_i U_i phi_i'`` with centred features in float64, (C, P)."""
        weighted = dual * self.row_weights[:, None]
        result = torch.zeros(dual.shape[1], self.num_features, dtype=torch.float64, device=self.device)
        for rows, block in self.blocks():
            result += weighted[rows].T @ block
        return self.shards.total(result - torch.outer(weighted.T @ self.bias_column, self.mean))

    def columns(self, index: Tensor | None, dtype: torch.dtype) -> Columns:
        """Return some columns (all if ``index`` is None) for products in ``dtype``; integer features stay integers."""
        whole = index is None
        matrix = self.features if index is None else self.features[:, index]
        return Columns(
            matrix=(matrix.to(dtype) if matrix.is_floating_point() else matrix).contiguous(),
            mean=(self.mean if whole else self.mean[index]).to(dtype),
            bias_column=self.bias_column.to(dtype),
            row_weights=self.row_weights.to(dtype),
            shards=self.shards,
        )

    def rough(self, columns: Columns) -> Columns | RoughColumns:
        """Return the same columns for fast products in about three digits.

        The columns of all features are cached until fewer are requested.
        """
        if columns.dtype is not torch.float32 or columns.matrix.shape[1] < self.num_features:
            self._rough = None
            return rough(columns)
        if self._rough is None:
            self._rough = rough(columns)
        return self._rough

    def of_features(self, index: Tensor) -> Design:
        """Return the design of some of the features, with their centres and variances."""
        other = object.__new__(Design)
        other.__dict__.update(self.__dict__)
        other._rough = None
        other.features, other.num_features = self.features[:, index], len(index)
        other.mean, other.variance = self.mean[index], self.variance[index]
        return other

    def rows(self, index: Tensor) -> Design:
        """Return the design of some of the samples of this process, without the other processes."""
        return Design(
            self.features[index],
            self.bias_column[index] if self.has_bias else None,
            self.row_weights[index],
        )


def _check_features(features: Tensor) -> None:
    if features.dim() != 2 or 0 in features.shape:
        raise DataError(
            f"features of shape {tuple(features.shape)}", "a matrix (samples, features), both at least 1", "check the data"
        )
    if features.is_complex():
        raise DataError("complex features", "real features", "pass real and imaginary parts as two features")
    if features.is_floating_point() and not math.isfinite(features.sum()):  # 20 times as fast as a count
        bad = int((~torch.isfinite(features)).sum())
        if bad:  # large finite values may also add up to infinity
            raise DataError(f"{bad} features that are NaN or infinite", "finite features", "clean the inputs")
