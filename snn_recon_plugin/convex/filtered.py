"""Different features for each output, for output neurons that filter the same spikes differently.

``Z[:, c] = Phi_k(c) W_c' + c_c b_c``: output c has the features of filter k(c), and its own bias column and centre.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..distributed import SINGLE_PROCESS, SingleProcess
from ..errors import DataError
from ..tables import IN_MEMORY, Tables
from .features import Features


class FilteredFeatures(Features):
    """Features for each of several filters, and the filter of each output.

    ``mean`` and ``variance`` are (C, P), ``bias_column`` is (n, C): one for each output.  ``matrix`` belongs to the first filter.

    Args:
        matrices: (n, K, P), finite; filter k has ``matrices[:, k]``.
        filters: (C,), index of each output's filter, 0 to K - 1; each filter has an output.
        bias_column: change of each score by one unit of bias: a number, or a tensor that expands to (n, C) and is the same for
            outputs of one filter; None for a readout without a bias.
        row_weights: as for ``Features``.
        shards, tables: as for ``Features``.

    Raises:
        DataError: shapes don't fit, or a value is not finite.
    """

    shared = False

    def __init__(
        self,
        matrices: Tensor,
        filters: Tensor,
        bias_column: float | Tensor | None = 1.0,
        row_weights: Tensor | None = None,
        *,
        shards: SingleProcess = SINGLE_PROCESS,
        tables: Tables = IN_MEMORY,
    ) -> None:
        if matrices.dim() != 3 or sorted(set(filters.tolist())) != list(range(matrices.shape[1])):
            found = f"features of shape {tuple(matrices.shape)} for filters {sorted(set(filters.tolist()))}"
            needed = "(samples, filters, features), and an output for each filter"
            raise DataError(found, needed, "pass the features of each filter once")
        outputs = [(filters == k).nonzero()[:, 0] for k in range(matrices.shape[1])]
        columns = None if bias_column is None else _columns(bias_column, matrices, len(filters))
        parts = [
            Features(
                matrix.contiguous(), None if columns is None else columns[:, each[0]], row_weights, shards=shards, tables=tables
            )
            for matrix, each in zip(matrices.unbind(1), outputs, strict=True)
        ]
        self.outputs = tuple(each.to(matrices.device) for each in outputs)
        self.order = torch.cat(self.outputs).argsort()  # position of each output among the outputs of all parts
        self._assemble(parts)

    def _assemble(self, parts: Sequence[Features]) -> None:
        first = parts[0]
        self.pairs = tuple(zip(parts, self.outputs, strict=True))  # each filter's features, and the outputs (k,) that see them
        self.dtype, self.matrix = first.dtype, first.matrix
        self.row_weights, self.shards = first.row_weights, first.shards
        self.bias_column = self._joined([part.bias_column for part in parts], 1)
        self.mean = self._joined([part.mean for part in parts], 0)
        self.variance = self._joined([part.variance for part in parts], 0)

    def _joined(self, of_parts: Sequence[Tensor], dim: int) -> Tensor:
        """Order the parts' values, one a filter, by output; a value of size 1 along ``dim`` is repeated."""
        pairs = zip(of_parts, self.outputs, strict=True)
        whole = [value.expand(*value.shape[:dim], len(own), *value.shape[dim + 1 :]) for value, own in pairs]
        return torch.cat(whole, dim).index_select(dim, self.order)

    def _of_parts(self, made: Callable[[Features], Features]) -> FilteredFeatures:
        other = FilteredFeatures.__new__(FilteredFeatures)
        other.outputs, other.order = self.outputs, self.order
        other._assemble([made(part) for part, _ in self.pairs])
        return other

    def scores(self, weight: Tensor, bias: Tensor) -> Tensor:
        return self._joined([part.scores(weight[own], bias[own]) for part, own in self.pairs], 1)

    def adjoint_of(self, make: Callable[[slice], Tensor], outputs: int) -> tuple[Tensor, Tensor]:
        dual = make(slice(None))  # once, although each filter sees a part of it
        found = [part.adjoint(dual[:, own]) for part, own in self.pairs]
        return self._joined([weight for weight, _ in found], 0), self._joined([bias for _, bias in found], 0)

    def second_moments(self, weights: Tensor) -> Tensor:
        """Second moments as for ``Features``, (C, P) for weights (n, C); (1, P), the mean over the outputs, for weights (n, 1)."""
        if weights.shape[1] == 1 and len(self.order) > 1:
            sums = [len(own) * part.second_moments(weights) for part, own in self.pairs]
            return torch.stack(sums).sum(0) / len(self.order)
        return self._joined([part.second_moments(weights[:, own]) for part, own in self.pairs], 0)

    def gram(self, weights: Tensor, rows: Tensor | None = None, index: Tensor | None = None) -> Tensor:
        """Gram block as for ``Features``, the mean over the outputs, (K, K)."""
        grams = [part.gram(weights, rows, index) * (len(own) / len(self.order)) for part, own in self.pairs]
        return torch.stack(grams).sum(0)

    def scores_of(self, matrix: Tensor, bias_column: float | Tensor | None, weight: Tensor, bias: Tensor) -> Tensor:
        """Scores as for ``Features``, of samples with features (m, K, P) and a bias column that expands to (m, C), or None."""
        column = _columns(bias_column, matrix, len(self.order))
        parts = zip(self.pairs, matrix.unbind(1), strict=True)
        found = [part.scores_of(own_matrix, column[:, own[0]], weight[own], bias[own]) for (part, own), own_matrix in parts]
        return self._joined(found, 1)

    def columns(self, index: Tensor | None, dtype: torch.dtype) -> FilteredFeatures:
        return self._of_parts(lambda part: part.columns(index, dtype))

    def part(self, rows: Tensor, share: float) -> FilteredFeatures:
        return self._of_parts(lambda part: part.part(rows, share))

    def of_output(self, output: int) -> Features:
        return next(part for part, own in self.pairs if output in own.tolist())


def _columns(bias_column: float | Tensor | None, matrices: Tensor, outputs: int) -> Tensor:
    """Return a bias column as (n, C), zeros for None."""
    column = torch.as_tensor(0.0 if bias_column is None else bias_column, dtype=torch.float64, device=matrices.device)
    try:
        return column.expand(len(matrices), outputs)
    except RuntimeError as error:
        found, fix = f"a bias column of shape {tuple(column.shape)}", "pass the change of each score by one unit of bias"
        raise DataError(found, f"a number, or a tensor that expands to {(len(matrices), outputs)}", fix) from error
