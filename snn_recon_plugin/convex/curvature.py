"""Second derivatives of losses in the scores: one small matrix a row, factored so that products are cheap."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Curvature"]


@dataclass(frozen=True)
class Curvature:
    """Second derivative of a loss at given scores, one C x C matrix a row.

    Row i's matrix is ``diag(diagonal_i) - rank_one_i rank_one_i' - (s_i e_i' + e_i s_i')`` with s the coupling and ``e_i`` the unit
    vector of the row's hub, one of its classes.  Losses that are sums over classes have a diagonal only.

    Args:
        diagonal: (n, C), non-negative.
        rank_one: (n, C) or None.
        coupling: (n, C), non-negative and zero at the hub, or None.
        hub: (n,), class to which the coupling couples all others, or None.
    """

    diagonal: Tensor
    rank_one: Tensor | None = None
    coupling: Tensor | None = None
    hub: Tensor | None = None

    @property
    def apart(self) -> bool:
        """True if the matrices are diagonal: no output's score changes another's slope."""
        return self.rank_one is None and self.coupling is None

    def product(self, scores: Tensor) -> Tensor:
        """Return each row's matrix times that row of ``scores`` (n, C)."""
        result = self.diagonal * scores
        if self.rank_one is not None:
            result = result - self.rank_one * (self.rank_one * scores).sum(1, keepdim=True)
        if self.coupling is None or self.hub is None:
            return result
        hub, coupled = self.hub[:, None], (self.coupling * scores).sum(1, keepdim=True)
        return result - (self.coupling * scores.gather(1, hub)).scatter_add(1, hub, coupled)

    def entries(self) -> Tensor:
        """Return the diagonals of the matrices, (n, C): the curvature in each class's own score."""
        return self.diagonal if self.rank_one is None else self.diagonal - self.rank_one.square()

    def weighted_sum(self, weights: Tensor) -> Tensor:
        """Return the sum over rows of ``weights_i`` times row i's matrix, (C, C)."""
        total = torch.diag(weights @ self.diagonal)
        if self.rank_one is not None:
            total = total - (self.rank_one * weights[:, None]).T @ self.rank_one
        if self.coupling is None or self.hub is None:
            return total
        half = torch.zeros_like(total).index_add_(0, self.hub, self.coupling * weights[:, None])
        return total - (half + half.T)

    def scaled(self, factors: Tensor) -> Curvature:
        """Return the second derivative in scores that enter the loss times their factors, (n, C) or (n, 1)."""
        factors = factors.expand_as(self.diagonal)
        rank_one = None if self.rank_one is None else self.rank_one * factors
        coupling = None
        if self.coupling is not None and self.hub is not None:
            coupling = self.coupling * factors * factors.gather(1, self.hub[:, None])
        return Curvature(self.diagonal * factors.square(), rank_one, coupling, self.hub)

    def part(self, rows: Tensor) -> Curvature:
        """Return the matrices of some rows (m,)."""
        return self._changed(lambda entries: entries[rows], None if self.hub is None else self.hub[rows])

    def to(self, dtype: torch.dtype) -> Curvature:
        """Return the same curvature in another precision."""
        return self._changed(lambda entries: entries.to(dtype), self.hub)

    def _changed(self, change: Callable[[Tensor], Tensor], hub: Tensor | None) -> Curvature:
        """Return the curvature with its entries changed, and another hub."""
        rank_one = None if self.rank_one is None else change(self.rank_one)
        return Curvature(change(self.diagonal), rank_one, None if self.coupling is None else change(self.coupling), hub)
