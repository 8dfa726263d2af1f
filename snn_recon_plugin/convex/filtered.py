"""Designs with different features for each output, for output neurons that filter the same spikes differently.

``Z[:, c] = Phi_k(c) W_c' + c_c b_c``: output c has the features of filter k(c), and its own bias column.  Each filter has one
ordinary design.  Products with all outputs are assembled from theirs, so each output is centred separately.  The memory is one
design's times the number of filters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..errors import DataError
from .columns import Columns
from .curvature import Curvature
from .design import Design
from .rough import RoughColumns
from .shards import ALONE, Alone

__all__ = ["FilteredColumns", "FilteredDesign"]


class FilteredDesign(Design):
    """Features for each of several filters, and the filter of each output.

    ``mean`` and ``variance`` are (C, P), ``bias_column`` is (n, C): one for each output.

    Args:
        features: (n, K, P), finite; filter k has ``features[:, k]``.
        filters: (C,), index of each output's filter, 0 to K - 1; each filter has an output.
        bias_column: change of each score by one unit of bias: a number, or a tensor that expands to (n, C) and is the same for
            outputs of one filter; None for a readout without a bias.
        row_weights: as for ``Design``.
        shards: as for ``Design``.

    Raises:
        DataError: shapes don't fit, or a value is not finite.

    Example:
        >>> import torch
        >>> features = torch.tensor([[[1.0], [2.0]], [[3.0], [4.0]]])  # two samples, two filters, one neuron
        >>> design = FilteredDesign(features, torch.tensor([0, 1, 1]), None)
        >>> design.scores(torch.ones(3, 1, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)).tolist()
        [[1.0, 2.0, 2.0], [3.0, 4.0, 4.0]]
    """

    shared = False

    def __init__(
        self,
        features: Tensor,
        filters: Tensor,
        bias_column: float | Tensor | None = 1.0,
        row_weights: Tensor | None = None,
        *,
        shards: Alone = ALONE,
    ) -> None:
        if features.dim() != 3 or sorted(set(filters.tolist())) != list(range(features.shape[1])):
            raise DataError(
                f"features of shape {tuple(features.shape)} for filters {sorted(set(filters.tolist()))}",
                "(samples, filters, features), and an output for each filter",
                "pass the features of each filter once",
            )
        outputs = [(filters == k).nonzero()[:, 0] for k in range(features.shape[1])]
        columns = _columns(bias_column, features, filters)
        parts = [
            Design(of_filter.contiguous(), None if columns is None else columns[:, each[0]], row_weights, shards=shards)
            for of_filter, each in zip(features.unbind(1), outputs, strict=True)
        ]
        self._put_together(parts, outputs)

    def _put_together(self, parts: Sequence[Design], outputs: Sequence[Tensor]) -> None:
        first = parts[0]
        self.parts = tuple(parts)
        self.outputs = tuple(each.to(first.device) for each in outputs)
        self.order = torch.cat(self.outputs).argsort()
        self.features = first.features
        self.num_samples, self.num_features = first.num_samples, first.num_features
        self.device = first.device
        self.shards = first.shards
        self.has_bias = first.has_bias
        self.row_weights = first.row_weights
        self.bias_column = self._joined([part.bias_column[:, None] for part in parts], 1)
        self.mean = self._joined([part.mean[None] for part in parts], 0)
        self.variance = self._joined([part.variance[None] for part in parts], 0)

    def _joined(self, of_parts: Sequence[Tensor], dim: int) -> Tensor:
        """Order the parts' values, one a filter, by output; a value of size 1 along ``dim`` is repeated."""
        sizes = [len(each) for each in self.outputs]
        whole = [
            value.expand(*value.shape[:dim], size, *value.shape[dim + 1 :]) for value, size in zip(of_parts, sizes, strict=True)
        ]
        return torch.cat(whole, dim).index_select(dim, self.order)

    @property
    def largest_variance(self) -> Tensor:
        """Largest variance of each feature over the outputs, (P,)."""
        return self.variance.amax(0)

    def centring(self, weight: Tensor) -> Tensor:
        """Share of the centres in scores of weights (C, P), for a unit of each output's bias column, (C,)."""
        return (weight * self.mean).sum(1)

    def biases(self, bias: Tensor) -> Tensor:
        """Share of a bias (C,) in the scores, (n, C)."""
        return self.bias_column * bias

    def bias_slope(self, dual: Tensor) -> Tensor:
        """Gradient in b of ``sum_i w_i <U_i, z_i>`` for rows U (n, C), (C,)."""
        return self.shards.total(self.row_weights @ (self.bias_column * dual))

    @property
    def bias_sizes(self) -> Tensor:
        """Mean size of the bias column of each output, (C,)."""
        return self.shards.total(self.row_weights @ self.bias_column.abs())

    def bias_squares(self) -> Tensor:
        """Mean square of the bias column of each output, (C,)."""
        return self.shards.total(self.row_weights @ self.bias_column.square())

    def bias_curvature(self, curvature: Curvature) -> Tensor:
        """Second derivative in b of a loss with such curvature at the scores, (C, C)."""
        return self.shards.total(curvature.scaled(self.bias_column).weighted_sum(self.row_weights))

    def second_moments(self, weights: Tensor) -> Tensor:
        """Second moments as for ``Design``, (C, P) for weights (n, C); (1, P), the mean over the outputs, for weights (n, 1)."""
        if weights.shape[1] == 1 and len(self.order) > 1:
            sums = [len(each) * part.second_moments(weights) for part, each in zip(self.parts, self.outputs, strict=True)]
            return torch.stack(sums).sum(0) / len(self.order)
        return self._joined([part.second_moments(weights[:, each]) for part, each in zip(self.parts, self.outputs, strict=True)], 0)

    def scores(self, weight: Tensor, bias: Tensor) -> Tensor:
        """Scores in float64, (n, C), of weights (C, P) for features as given (not centred)."""
        return self._joined([part.scores(weight[each], bias[each]) for part, each in zip(self.parts, self.outputs, strict=True)], 1)

    def scores_of(self, features: Tensor, bias_column: float | Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Scores as for ``Design``, of samples with features (m, K, P) and a bias column that expands to (m, C)."""
        column = _columns(bias_column, features, self.order)
        assert column is not None
        of_filters = zip(features.unbind(1), self.parts, self.outputs, strict=True)
        return self._joined(
            [part.scores_of(some, column[:, each[0]], weight[each], bias[each]) for some, part, each in of_filters], 1
        )

    def adjoint(self, dual: Tensor) -> Tensor:
        """``sum_i w_i U_i phi_i'`` with the centred features of each output in float64, (C, P)."""
        return self._joined([part.adjoint(dual[:, each]) for part, each in zip(self.parts, self.outputs, strict=True)], 0)

    def columns(self, index: Tensor | None, dtype: torch.dtype) -> Columns:
        """Return some columns (all if ``index`` is None) of every filter, for products in ``dtype``."""
        mean = self.mean if index is None else self.mean[:, index]
        return self._with_parts([part.columns(index, dtype) for part in self.parts], mean.to(dtype))

    def rough(self, columns: Columns) -> Columns | RoughColumns:
        """Return the same columns for fast products, as for ``Design``."""
        assert isinstance(columns, FilteredColumns)
        of_parts = zip(self.parts, columns.parts, strict=True)
        rough = [part.rough(each) if isinstance(each, Columns) else each for part, each in of_parts]
        return self._with_parts(rough, columns.mean)

    def _with_parts(self, parts: Sequence[Columns | RoughColumns], mean: Tensor) -> FilteredColumns:
        first = parts[0]
        return FilteredColumns(
            matrix=first.matrix,
            mean=mean,
            bias_column=self.bias_column.to(mean.dtype),
            row_weights=first.row_weights,
            shards=self.shards,
            parts=tuple(parts),
            outputs=self.outputs,
            order=self.order,
        )

    def of_features(self, index: Tensor) -> Design:
        """Return the design of some of the features, with their centres and variances."""
        other = object.__new__(FilteredDesign)
        other._put_together([part.of_features(index) for part in self.parts], self.outputs)
        return other

    def rows(self, index: Tensor) -> Design:
        """Return the design of some of the samples of this process, without the other processes."""
        other = object.__new__(FilteredDesign)
        other._put_together([part.rows(index) for part in self.parts], self.outputs)
        return other


@dataclass(frozen=True)
class FilteredColumns(Columns):
    """Columns of a ``FilteredDesign``: the columns of each filter, and products assembled from theirs.

    ``bias_column`` is (n, C); ``matrix`` is the first filter's.

    Args:
        parts: columns of each filter.
        outputs: outputs of each filter.
        order: (C,), position of each output among the outputs of all parts.
    """

    parts: tuple[Columns | RoughColumns, ...] = ()
    outputs: tuple[Tensor, ...] = ()
    order: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.long))

    @property
    def shared(self) -> bool:
        """False: outputs see different features."""
        return False

    def of_output(self, output: int) -> Columns:
        """Return the columns that one output sees."""
        part = next(part for part, each in zip(self.parts, self.outputs, strict=True) if output in each.tolist())
        assert isinstance(part, Columns)
        return part

    def centring(self, weight: Tensor) -> Tensor:
        """Share of the centres in scores of weights (C, A), (C,)."""
        return (weight * self.mean).sum(1)

    def bias_bend(self, entries: Tensor) -> Tensor:
        """Curvature of the loss along each bias, ``sum_i w_i c_ic^2 entries_ic``, (C,)."""
        return self.shards.total(self.row_weights @ (self.bias_column.square() * entries))

    def scores(self, weight: Tensor, shift: Tensor) -> Tensor:
        """Scores of weights (C, A) on centred features and a bias (C,) for them, (n, C)."""
        of_parts = [part.scores(weight[each], shift[each]) for part, each in zip(self.parts, self.outputs, strict=True)]
        return torch.cat(of_parts, 1)[:, self.order]

    def adjoint(self, dual: Tensor) -> tuple[Tensor, Tensor]:
        """Gradient in (W, b) of ``sum_i w_i <U_i, z_i>`` for scores on centred features: (C, A) and (C,)."""
        of_parts = [part.adjoint(dual[:, each]) for part, each in zip(self.parts, self.outputs, strict=True)]
        weight, bias = torch.cat([each[0] for each in of_parts]), torch.cat([each[1] for each in of_parts])
        return weight[self.order], bias[self.order]

    def part(self, rows: Tensor, share: float) -> Columns:
        """Return a sample of the rows (m,) that represents all: sums over it are divided by ``share``."""
        parts = tuple(part.part(rows, share) for part in self.parts)
        weights = self.row_weights[rows] / share
        column = self.bias_column[rows]
        return FilteredColumns(parts[0].matrix, self.mean, column, weights, self.shards, parts, self.outputs, self.order)

    def leading_gram(self, weights: Tensor, mass: float, index: Tensor | None = None) -> Tensor:
        """Gram block as for ``Columns``, the mean over the outputs, (K, K)."""
        result = self.mean.new_zeros(())
        for part, each in zip(self.parts, self.outputs, strict=True):
            assert isinstance(part, Columns)
            result = result + part.leading_gram(weights, mass, index) * (len(each) / len(self.order))
        return result


def _columns(bias_column: float | Tensor | None, features: Tensor, filters: Tensor) -> Tensor | None:
    """Return a bias column as (n, C), or None."""
    if bias_column is None:
        return None
    column = torch.as_tensor(bias_column, dtype=torch.float64, device=features.device)
    try:
        return column.expand(len(features), len(filters))
    except RuntimeError as error:
        raise DataError(
            f"a bias column of shape {tuple(column.shape)}",
            f"a number, or a tensor that expands to {(len(features), len(filters))}",
            "pass the change of each score by one unit of bias",
        ) from error
