"""Ridge readouts of squared loss in closed form, from sums of products over samples.

The program is ``convex.Problem`` with the loss "squared" and the penalty "ridge": minimise over W and b
``1/n sum_i 1/2 ||W phi_i + c_i b - y_i||^2 + strength 1/2 ||W||^2``, with b free.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

_GRID = tuple(10.0 ** (-half / 2) for half in range(2, 14))  # falling strengths, of the mean square of a row's centred features
_LEAST_LEFT = 0.02  # of the degrees of freedom that a fit must leave: fewer make the criterion rounding


@dataclass(frozen=True)
class RidgeProgram:
    """Program of some outputs that see the rows through one filter, in float64.

    Args:
        gram: (P + 1, P + 1), sum over samples of the products of their rows; a row's last value is what one unit of bias adds.
        cross: (P + 1, C), sum of the products of rows and targets 1 and -1.
        count: number of samples n.
    """

    gram: Tensor
    cross: Tensor
    count: float

    @cached_property
    def _parts(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Eigenvalues and eigenvectors of the centred features, their products with targets, and what the bias alone explains."""
        own = self.gram[-1, -1]
        has_bias = float(own) > 0
        share = self.gram[:-1, -1] / own if has_bias else torch.zeros_like(self.gram[:-1, -1])
        level = self.cross[-1] / own if has_bias else torch.zeros_like(self.cross[-1])
        values, vectors = torch.linalg.eigh((self.gram[:-1, :-1] - own * torch.outer(share, share)) / self.count)
        products = vectors.T @ (self.cross[:-1] - own * torch.outer(share, level)) / self.count
        return values.clamp_min(0), vectors, products, share, level

    def strengths(self) -> list[float]:
        """Return the falling strengths that are worth a try."""
        total = float(self._parts[0].sum()) or 1.0
        return [factor * total for factor in _GRID]

    def solve(self, strength: float) -> tuple[Tensor, Tensor]:
        """Return the solution, weight (C, P) and bias (C,)."""
        values, vectors, products, share, level = self._parts
        weight = (vectors @ (products / (values + strength)[:, None])).T
        return weight, level - weight @ share

    def cross_validation(self, strength: float) -> float:
        """Return the generalised cross-validation score, an estimate of the mean squared error that leaves each sample out once.

        Golub, Heath and Wahba, Technometrics 21, 1979.
        """
        values, _, products, _, level = self._parts
        fitted = products / (values + strength)[:, None]
        explained = (products * fitted).sum(0) * 2 - (values[:, None] * fitted.square()).sum(0)
        residual = 1 - level.square() * self.gram[-1, -1] / self.count - explained
        left = 1 - (float((values / (values + strength)).sum()) + 1) / self.count
        return float(residual.sum()) / left**2 if left > _LEAST_LEFT else float("inf")


def choose_strength_of(programs: list[RidgeProgram]) -> float:
    """Return the strength with the least cross-validation score of all outputs; the largest if no score is finite."""
    return min(programs[0].strengths(), key=lambda strength: sum(program.cross_validation(strength) for program in programs))
