r"""Equations of a step along the central path: a Cholesky factor of the features' weighted Gram matrix, and the bias.

Near the end, rows on the margin weigh many orders of magnitude more than others.  Iterative refinement corrects the rounding.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .columns import Columns
from .preconditioner import cholesky

__all__ = ["Equations"]

_REFINEMENTS = 5
_MASS = 1 - 1e-12  # share of the rows' inverse stiffness that enters; the next step corrects the rest


class Equations:
    """Normal equations ``X' X / stiff + 1 / give``, jointly with the bias.

    Args:
        columns: X, in float64, its row weights all one.
        inverse: (P,), factors that scale its columns to unit size.
        stiff: (n,), positive.
        give: (P,), positive.
        has_bias: True if there is a bias.
    """

    def __init__(self, columns: Columns, inverse: Tensor, stiff: Tensor, give: Tensor, has_bias: bool) -> None:
        self.columns = columns
        self.inverse = inverse
        self.stiff = stiff
        self.give = give
        self.has_bias = has_bias
        gram = columns.leading_gram(1 / stiff, _MASS).mul_(inverse[:, None]).mul_(inverse)
        gram.diagonal().add_(1 / give)
        self.factor = cholesky(gram)
        spread = columns.bias_column / stiff
        self.cross = columns.adjoint(spread[:, None])[0][0] * inverse
        self.solved = torch.cholesky_solve(self.cross[:, None], self.factor)[:, 0]
        own = spread @ columns.bias_column
        self.bend = (own - self.cross @ self.solved).clamp_min(1e-14 * own)  # rounding may cancel it completely

    def solve(self, right: Tensor, right_bias: Tensor) -> tuple[Tensor, Tensor]:
        """Return the solution for a right-hand side (P,) and (), refined while the residual falls."""
        weight, bias = self._rough(right, right_bias)
        size = math.inf
        for _ in range(_REFINEMENTS):
            image, image_bias = self._product(weight, bias)
            left, left_bias = right - image, right_bias - image_bias
            last, size = size, float(left.norm() + left_bias.abs())
            if not 0 < size < 0.5 * last:
                break
            more, more_bias = self._rough(left, left_bias)
            weight, bias = weight + more, bias + more_bias
        return weight, bias

    def _rough(self, right: Tensor, right_bias: Tensor) -> tuple[Tensor, Tensor]:
        weight = torch.cholesky_solve(right[:, None], self.factor)[:, 0]
        if not (self.has_bias and self.bend > 0):
            return weight, torch.zeros_like(right_bias)
        bias = (right_bias - self.cross @ weight) / self.bend
        return weight - self.solved * bias, bias

    def _product(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        scores = self.columns.scores((weight * self.inverse)[None], bias[None])
        image, image_bias = self.columns.adjoint(scores / self.stiff[:, None])
        return image[0] * self.inverse + weight / self.give, image_bias[0] if self.has_bias else torch.zeros_like(bias)
