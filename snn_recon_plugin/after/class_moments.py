"""Squared hinge of a readout from mean and covariance of each class's rows, as if the scores of a class were normal.

A score sums many spikes, so that its distribution over a class's samples is near normal.  The expected squared hinge of a normal
score has a closed form in its mean and variance, convex in the weights.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ..errors import SolverError

_STEPS, _HISTORY = 60, 20  # of L-BFGS, from the solution at the last strength: more do not change held-out accuracies
_TINY = 1e-12  # of a variance, whose root has no slope at zero


def expected_hinge(mean: Tensor, variance: Tensor, sign: Tensor) -> Tensor:
    """Return the mean of ``1/2 max(0, 1 - sign z)^2`` over normal scores z."""
    spread, lack = (variance + _TINY).sqrt(), 1 - sign * mean
    reach = lack / spread
    below = 0.5 * torch.erfc(-reach / math.sqrt(2))
    density = torch.exp(-0.5 * reach.square()) / math.sqrt(2 * math.pi)
    return 0.5 * ((lack.square() + variance) * below + lack * spread * density)


@dataclass(frozen=True)
class ClassMoments:
    """Mean and covariance of the rows of each class, through one filter, in float64; all classes weigh alike.

    Args:
        means: (C, P + 1); a row's last value is what one unit of bias adds.
        covariances: (C, P + 1, P + 1).
    """

    means: Tensor
    covariances: Tensor

    @staticmethod
    def of(gram: Tensor, sums: Tensor, counts: Tensor) -> ClassMoments:
        """Return the moments from sums of products (C, P + 1, P + 1), sums of rows (P + 1, C), and numbers of rows (C,)."""
        means = sums.T / counts[:, None]
        scatter = gram - counts[:, None, None] * means[:, :, None] * means[:, None, :]
        return ClassMoments(means, scatter / counts[:, None, None])

    @cached_property
    def _basis(self) -> tuple[Tensor, Tensor, Tensor]:
        """Coefficient of each feature on the bias's feature, and eigenvalues and eigenvectors of the residual products."""
        products = self.covariances.mean(0) + self.means.T @ self.means / len(self.means)
        own = products[-1, -1]
        share = products[:-1, -1] / own if float(own) > 0 else torch.zeros_like(products[:-1, -1])
        values, vectors = torch.linalg.eigh(products[:-1, :-1] - own * torch.outer(share, share))
        return share, values.clamp_min(0), vectors

    @property
    def scale(self) -> float:
        """Mean square of a row's features, centred: the unit of strengths."""
        return float(self._basis[1].sum()) or 1.0

    def solve(self, outputs: Tensor, strength: float, start: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """Return weight (C', P) and bias (C',) of outputs, one class against the rest, with ridge on the weight.

        ``start`` is a solution at another strength.
        """
        share, values, vectors = self._basis
        scale = 1 / (values + strength).sqrt()  # the ridge has the curvature of all directions near one
        change = torch.eye(len(share) + 1, dtype=torch.float64)  # from points to weight and bias
        change[:-1, :-1] = vectors * scale
        change[-1, :-1] = -share @ change[:-1, :-1]
        return self._descend(outputs, strength, change, scale, start)

    def _descend(
        self, outputs: Tensor, strength: float, change: Tensor, scale: Tensor, start: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, Tensor]:
        """Minimise over points A in the basis; weight and bias are ``A change'``."""
        means, spread = self.means @ change, change.T @ self.covariances @ change
        signs = 2.0 * torch.nn.functional.one_hot(outputs, len(means)).double() - 1
        point = torch.zeros(len(outputs), len(change)).double()
        if start is not None:
            point = torch.linalg.solve(change, torch.cat([start[0], start[1][:, None]], 1).T).T.contiguous()
        point.requires_grad_(True)
        search = torch.optim.LBFGS([point], max_iter=_STEPS, history_size=_HISTORY, line_search_fn="strong_wolfe")

        def objective() -> Tensor:
            search.zero_grad()
            variance = ((point @ spread) * point).sum(-1).T  # [C', C]
            loss = expected_hinge(point @ means.T, variance, signs).mean(1).sum()
            loss = loss + 0.5 * strength * (point[:, :-1] * scale).square().sum()
            torch.autograd.backward(loss)
            return loss

        with torch.enable_grad():
            search.step(objective)  # type: ignore[no-untyped-call]
        found = point.detach() @ change.T
        if not bool(torch.isfinite(found).all()):
            raise SolverError(
                f"weights that are not finite at strength {strength:.1e}",
                "features and a strength that give finite weights",
                "pass a larger strength=, or fit_loss='squared', which has a closed form",
            )
        return found[:, :-1], found[:, -1]
