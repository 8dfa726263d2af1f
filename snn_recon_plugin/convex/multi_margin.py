r"""Multi-class margin loss of ``torch.nn.MultiMarginLoss``, which separates the right class y from every wrong class k.

    loss(z, y) = (1 / C) sum_{k != y} max(0, margin - z_y + z_k)^p,    p = 1 or 2.

It depends on the differences ``z_k - z_y`` alone, so a common shift of all scores changes nothing, as for cross-entropy.  A dual
point has one number ``a_k`` for every wrong class, ``u_k = a_k`` and ``u_y = -sum a_k``.  All formulas below are sums over them.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..errors import DataError, OptionError
from .checks import positive_number
from .curvature import Coupling, Curvature
from .interior import pairs_bias
from .losses import Loss, class_indices

__all__ = ["MultiMargin", "SmoothedMultiMargin", "SquaredMultiMargin"]


class _Pairs(Loss):
    """Sum over wrong classes of one function of ``lack_k = margin - z_y + z_k``."""

    margin: float

    def prepare(self, targets: Tensor, num_outputs: int) -> Tensor:
        """Return class indices (n,) of any integer dtype as int64."""
        indices = class_indices(targets, max(num_outputs, 2))
        if num_outputs < 2:
            raise DataError(f"{self.name} with one output", "at least two outputs", "pass loss='hinge'")
        return indices

    def lack(self, scores: Tensor, targets: Tensor) -> Tensor:
        """Return how much the right class's lead lacks to the margin, (n, C).

        The right class has no term, and minus infinity.
        """
        right = targets[:, None]
        return (scores - scores.gather(1, right) + self.margin).scatter(1, right, -math.inf)


class MultiMargin(_Pairs):
    """Multi-class margin loss ``(1 / C) sum_{k != y} max(0, margin - z_y + z_k)^p``.

    Conjugate: p = 1: ``-margin sum a`` on ``0 <= a_k <= 1 / C``; p = 2: ``C/4 sum a^2 - margin sum a`` on ``a_k >= 0``.
    With p = 1 it has kinks, so solvers work on its smoothings.  The certificate is always for the loss itself.

    Args:
        p: 1 or 2, the power.
        margin: required lead of the right class, positive.

    Raises:
        OptionError: another power, or a margin that is not positive.
    """

    name = "multi_margin"
    bound = math.inf

    def __init__(self, p: int = 1, margin: float = 1.0) -> None:
        if isinstance(p, bool) or p not in (1, 2):
            raise OptionError(f"p={p!r}", "1 or 2", "pass p=1 for the plain loss, p=2 for its square")
        self.p, self.margin = int(p), positive_number("margin", margin, "a positive number", "pass margin=1.0")
        if self.p == 2:
            # With all classes within the margin a row's matrix is 2/C times the Laplacian of a star, whose largest eigenvalue is C.
            self.name, self.bound = "squared_multi_margin", 2.0

    def value(self, scores: Tensor, targets: Tensor) -> Tensor:
        """Loss of each row, (n,)."""
        lack = self.lack(scores, targets).clamp_min(0)
        return (lack if self.p == 1 else lack.square()).sum(1) / scores.shape[1]

    def gradient(self, scores: Tensor, targets: Tensor) -> Tensor:
        """Return ``a_k = 1 / C`` where class k lacks (a subgradient for p = 1), or ``2 lack_k / C`` for p = 2."""
        lack = self.lack(scores, targets)
        slopes = (lack > 0).to(scores.dtype) if self.p == 1 else 2 * lack.clamp_min(0)
        return _balanced(slopes / scores.shape[1], targets)

    def curvature(self, scores: Tensor, targets: Tensor) -> Curvature:
        """Return ``sum_k h_k (e_k - e_y)(e_k - e_y)'``: ``h_k = 2 / C`` where class k lacks for p = 2, zero for p = 1."""
        if self.p == 1:
            return Curvature(torch.zeros_like(scores))
        return _star((self.lack(scores, targets) > 0).to(scores.dtype) * (2 / scores.shape[1]), targets)

    def conjugate(self, dual: Tensor, targets: Tensor) -> Tensor:
        """Return ``-margin sum a``, plus ``C/4 sum a^2`` for p = 2; infinite outside the domain."""
        wrong, outside = _wrong_classes(dual, targets)
        linear = -self.margin * wrong.sum(1)
        if self.p == 1:
            outside = outside | (wrong > 1 / dual.shape[1] + 1e-9).any(1)
            return torch.where(outside, torch.inf, linear)
        return torch.where(outside, torch.inf, 0.25 * dual.shape[1] * wrong.square().sum(1) + linear)

    def smoothed(self, width: float, centre: Tensor | None = None) -> Loss:
        """Return the smoothing around a dual point for p = 1, at most ``width / 2`` below the loss without one; self for p = 2."""
        return SmoothedMultiMargin(width, centre, self.margin) if self.p == 1 else self

    def exact_bias(self, column: Tensor, weights: Tensor, scores: Tensor, targets: Tensor) -> Tensor | None:
        """Return the minimiser in b by an interior-point method for p = 1, None for p = 2."""
        if self.p != 1:
            return None
        return pairs_bias(column, weights, self.lack(scores, targets), targets, 0.0, 1 / scores.shape[1])


class SquaredMultiMargin(MultiMargin):
    """Multi-class margin loss with p = 2: ``(1 / C) sum_{k != y} max(0, margin - z_y + z_k)^2``.

    Args:
        margin: required lead of the right class, positive.
    """

    name = "squared_multi_margin"
    bound = 2.0

    def __init__(self, margin: float = 1.0) -> None:
        super().__init__(2, margin)


class SmoothedMultiMargin(_Pairs):
    """Multi-class margin loss (p = 1) with its kinks rounded, around a dual point A.

    Its conjugate is the loss's own plus ``v C / 2 sum_k (a_k - A_k)^2`` with width v.  Each term is smoothed separately, so no
    projection is needed.  Every dual point is also one of the loss.  If A is optimal for the loss, the smoothing costs nothing.
    On lacks shifted by ``v C A_k`` each kink becomes a parabola ``lack^2 / (2 v)`` from 0 to v.

    Args:
        width: v, positive.
        centre: dual rows U (n, C), whose entries of wrong classes are A; None means zero.
        margin: margin of the loss.
    """

    name = "smoothed_multi_margin"

    def __init__(self, width: float, centre: Tensor | None = None, margin: float = 1.0) -> None:
        self.width = width
        self.centre = centre
        self.margin = margin
        self.bound = 1 / width  # largest eigenvalue of a star's Laplacian: C times the 1 / (v C) of one pair

    def value(self, scores: Tensor, targets: Tensor) -> Tensor:
        """Loss of each row, (n,)."""
        lack = self._shifted(scores, targets)
        bent = lack.clamp(0, self.width)
        rows = (bent.square() / (2 * self.width) + (lack - self.width).clamp_min(0)).sum(1) / scores.shape[1]
        if self.centre is None:
            return rows
        centre = _wrong_classes(self.centre, targets)[0].to(scores.dtype)
        return rows - 0.5 * self.width * scores.shape[1] * centre.square().sum(1)

    def gradient(self, scores: Tensor, targets: Tensor) -> Tensor:
        """Return ``a_k = lack_k / v`` clipped to 0 .. 1, over C."""
        return _balanced((self._shifted(scores, targets) / self.width).clamp(0, 1) / scores.shape[1], targets)

    def curvature(self, scores: Tensor, targets: Tensor) -> Curvature:
        """Return the curvature with ``h_k = 1 / (v C)`` on the parabola, else 0."""
        lack = self._shifted(scores, targets)
        return _star(((lack > 0) & (lack < self.width)).to(scores.dtype) / (self.width * scores.shape[1]), targets)

    def conjugate(self, dual: Tensor, targets: Tensor) -> Tensor:
        """Return ``-margin sum a + v C / 2 sum (a - A)^2`` on the loss's own domain."""
        away = _wrong_classes(dual, targets)[0]
        if self.centre is not None:
            away = away - _wrong_classes(self.centre, targets)[0]
        own = MultiMargin(1, self.margin).conjugate(dual, targets)
        return own + 0.5 * self.width * dual.shape[1] * away.square().sum(1)

    def exact_bias(self, column: Tensor, weights: Tensor, scores: Tensor, targets: Tensor) -> Tensor:
        """Return the minimiser in b by an interior-point method, since Newton steps zigzag."""
        classes = scores.shape[1]
        return pairs_bias(column, weights, self._shifted(scores, targets), targets, self.width * classes, 1 / classes)

    def _shifted(self, scores: Tensor, targets: Tensor) -> Tensor:
        lack = self.lack(scores, targets)
        return lack if self.centre is None else lack + self.width * scores.shape[1] * self.centre.to(scores.dtype)


def _balanced(slopes: Tensor, targets: Tensor) -> Tensor:
    """Return the dual rows of the ``a_k`` (n, C), zero at the right class, which gets minus their sum."""
    return slopes.scatter(1, targets[:, None], -slopes.sum(1, keepdim=True))


def _star(bends: Tensor, targets: Tensor) -> Curvature:
    """Return ``sum_k h_k (e_k - e_y)(e_k - e_y)'`` for bends h (n, C), zero at the right class."""
    return Curvature(bends.scatter(1, targets[:, None], bends.sum(1, keepdim=True)), coupling=Coupling(bends, targets))


def _wrong_classes(dual: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return the ``a_k`` of dual rows (n, C), zero at the right class, and the rows that are no dual point of any margin, (n,)."""
    wrong = dual.scatter(1, targets[:, None], 0.0)
    outside = (wrong < -1e-9).any(1) | (dual.sum(1).abs() > 1e-6)
    return wrong, outside
