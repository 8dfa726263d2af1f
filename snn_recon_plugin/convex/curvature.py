"""Second derivatives of losses in the scores: one small matrix a row, factored so that products are cheap."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Coupling", "Curvature"]


@dataclass(frozen=True)
class Coupling:
    """Off-diagonal entries between each row's hub (n,), one of its classes, and its others: strengths (n, C), zero at the hub."""

    strength: Tensor
    hub: Tensor

    def product(self, scores: Tensor) -> Tensor:
        """Return ``(s e' + e s')`` times each row of ``scores`` (n, C), with s the strength and e the unit vector of the hub."""
        hub = self.hub[:, None]
        return (self.strength * scores.gather(1, hub)).scatter_add(1, hub, (self.strength * scores).sum(1, keepdim=True))

    def weighted_sum(self, weights: Tensor) -> Tensor:
        """Return the sum over rows of ``weights_i`` times row i's matrix, (C, C)."""
        size = self.strength.shape[1]
        half = self.strength.new_zeros(size, size).index_add_(0, self.hub, self.strength * weights[:, None])
        return half + half.T


@dataclass(frozen=True)
class Curvature:
    """Second derivative of a loss at given scores, one C x C matrix a row.

    Row i's matrix is ``diag(diagonal_i) - rank_one_i rank_one_i' - (s_i e_i' + e_i s_i')``.  The last part is the coupling, with
    ``e_i`` the unit vector of its hub.  Losses that are sums over classes have a diagonal only.

    Args:
        diagonal: (n, C), non-negative.
        rank_one: (n, C) or None.
        coupling: off-diagonal entries to one class a row, or None.
    """

    diagonal: Tensor
    rank_one: Tensor | None = None
    coupling: Coupling | None = None

    @property
    def apart(self) -> bool:
        """True if the matrices are diagonal: no output's score changes another's slope."""
        return self.rank_one is None and self.coupling is None

    def product(self, scores: Tensor) -> Tensor:
        """Return each row's matrix times that row of ``scores`` (n, C)."""
        result = self.diagonal * scores
        if self.rank_one is not None:
            result = result - self.rank_one * (self.rank_one * scores).sum(1, keepdim=True)
        return result if self.coupling is None else result - self.coupling.product(scores)

    def entries(self) -> Tensor:
        """Return the diagonals of the matrices, (n, C): the curvature in each class's own score."""
        return self.diagonal if self.rank_one is None else self.diagonal - self.rank_one.square()

    def weighted_sum(self, weights: Tensor) -> Tensor:
        """Return the sum over rows of ``weights_i`` times row i's matrix, (C, C)."""
        total = torch.diag(weights @ self.diagonal)
        if self.rank_one is not None:
            total = total - (self.rank_one * weights[:, None]).T @ self.rank_one
        return total if self.coupling is None else total - self.coupling.weighted_sum(weights)

    def scaled(self, factors: Tensor) -> Curvature:
        """Return the second derivative in scores that enter the loss times their factors, (n, C) or (n, 1)."""
        factors = factors.expand_as(self.diagonal)
        coupling = self.coupling
        if coupling is not None:
            of_hub = factors.gather(1, coupling.hub[:, None])
            coupling = Coupling(coupling.strength * factors * of_hub, coupling.hub)
        rank_one = None if self.rank_one is None else self.rank_one * factors
        return Curvature(self.diagonal * factors.square(), rank_one, coupling)

    def part(self, rows: Tensor) -> Curvature:
        """Return the matrices of some rows (m,)."""
        coupling = self.coupling
        if coupling is not None:
            coupling = Coupling(coupling.strength[rows], coupling.hub[rows])
        return Curvature(self.diagonal[rows], None if self.rank_one is None else self.rank_one[rows], coupling)

    def to(self, dtype: torch.dtype) -> Curvature:
        """Return the same curvature in another precision."""
        coupling = self.coupling
        if coupling is not None:
            coupling = Coupling(coupling.strength.to(dtype), coupling.hub)
        return Curvature(self.diagonal.to(dtype), None if self.rank_one is None else self.rank_one.to(dtype), coupling)
