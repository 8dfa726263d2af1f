"""Losses of a margin: squared hinge, hinge and its smoothing.  The margin is ``m = y z`` with y = +-1, for each output."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from .loss import Curvature, OutputLoss, TorchLosses, zero_of_slope

_FINE = 1e-2  # width of a smoothing that float32 does not resolve


class _Parabola(OutputLoss):
    """Loss of the lack ``l = 1 - m``: zero below zero, ``l^2 / (2 width)`` up to the width times ``steepest``, then a line.

    With a centre V the loss is shifted to ``loss(z + width V) - width/2 ||V||^2``.
    """

    width, steepest = 1.0, math.inf
    centre: Tensor | None = None

    def by_output(self, scores: Tensor, targets: Tensor) -> Tensor:
        lack, end = _lack(scores, targets, self), self.width * self.steepest
        values = lack.clamp(0, end).square() / (2 * self.width)
        if math.isfinite(end):
            values = values + (lack - end).clamp_min(0)
        return values if self.centre is None else values - 0.5 * self.width * self.centre.to(scores.dtype).square()

    def gradient(self, scores: Tensor, targets: Tensor) -> Tensor:
        slope = _lack(scores, targets, self).div_(self.width).clamp_(0, self.steepest)  # in place, as arrays may be gigabytes
        return slope.mul_(targets.to(scores.dtype)).neg_()

    def curvature(self, scores: Tensor, targets: Tensor) -> Curvature:
        """Return one over the width on the parabola, else 0 (one member of the generalised second derivative)."""
        lack, end = _lack(scores, targets, self), self.width * self.steepest
        bent = lack > 0 if math.isinf(end) else (lack > 0) & (lack < end)
        return Curvature(bent.to(scores.dtype).div_(self.width))


class SquaredHinge(_Parabola):
    """Squared hinge ``1/2 max(0, 1 - m)^2``; conjugate ``1/2 u^2 + u y`` where ``u y <= 0``."""

    name, bends = "squared_hinge", "partly"
    max_curvature = 1.0
    torch_losses: ClassVar[TorchLosses] = {nn.MultiMarginLoss: nn.functional.multi_margin_loss}
    equals_torch = False  # that loss compares the scores of a row

    def conjugate(self, dual: Tensor, targets: Tensor) -> Tensor:
        signed = dual * targets.to(dual.dtype)
        return torch.where((signed > 1e-9).any(1), torch.inf, (0.5 * dual.square() + signed).sum(1))

    def cvxpy_sum(self, cvxpy: Any, scores: Any, targets: Tensor, weights: npt.NDArray[np.float64]) -> Any:
        lack = cvxpy.pos(1 - cvxpy.multiply(targets.cpu().numpy(), scores))
        return 0.5 * cvxpy.sum_squares(cvxpy.multiply(weights[:, None] ** 0.5, lack))


class Hinge(OutputLoss):
    """Hinge ``max(0, 1 - m)``; conjugate ``u y`` on ``-1 <= u y <= 0``.

    It has a kink, so solvers work on its smoothings.  The certificate is always for the hinge itself.
    """

    name = "hinge"
    max_curvature, smooth = math.inf, False
    needs_float64 = True

    def by_output(self, scores: Tensor, targets: Tensor) -> Tensor:
        return _lack(scores, targets).clamp_min(0)

    def gradient(self, scores: Tensor, targets: Tensor) -> Tensor:
        return -targets.to(scores.dtype) * (_lack(scores, targets) > 0)

    def curvature(self, scores: Tensor, targets: Tensor) -> Curvature:
        return Curvature(torch.zeros_like(scores))

    def conjugate(self, dual: Tensor, targets: Tensor) -> Tensor:
        signed = dual * targets.to(dual.dtype)
        outside = ((signed > 1e-9) | (signed < -1 - 1e-9)).any(1)
        return torch.where(outside, torch.inf, signed.sum(1))

    def smoothed(self, width: float, centre: Tensor | None = None) -> SmoothedHinge:
        return SmoothedHinge(width, centre)

    def exact_bias(self, column: Tensor, weights: Tensor, scores: Tensor, targets: Tensor) -> Tensor:
        """Sort the kinks ``(y_i - z_i) / c_i``, where the slope rises by ``weights_i |c_i|``, to find where it reaches zero."""
        rows = (weights * column != 0).nonzero()[:, 0]
        column, scores, signs = column[rows, None], scores[rows], targets[rows]
        rise = (weights[rows, None] * column.abs()).expand_as(signs)
        kinks, order = ((signs - scores) / column).sort(0)
        slope = rise.gather(0, order).cumsum(0) - torch.where(signs * column > 0, rise, 0.0).sum(0)
        first = (slope < -1e-15).sum(0).clamp_max(len(rows) - 1)
        return kinks.gather(0, first[None])[0]

    def cvxpy_sum(self, cvxpy: Any, scores: Any, targets: Tensor, weights: npt.NDArray[np.float64]) -> Any:
        return weights @ cvxpy.sum(cvxpy.pos(1 - cvxpy.multiply(targets.cpu().numpy(), scores)), axis=1)


class SmoothedHinge(_Parabola):
    """Moreau envelope of the hinge around a dual point V (n, C), zero for None: ``e(z + v V) - v/2 ||V||^2`` with width v.

    ``e`` replaces the hinge's kink by a parabola over margins from ``1 - v`` to 1.  The conjugate is the hinge's plus
    ``v/2 ||u - V||^2``, so every dual point is also one of the hinge.  If V is optimal for the hinge, the smoothing costs nothing.
    """

    name = "smoothed_hinge"
    steepest = 1.0

    def __init__(self, width: float, centre: Tensor | None = None) -> None:
        self.width, self.centre = width, centre
        self.max_curvature = 1 / width
        self.needs_float64 = width <= _FINE

    def part(self, rows: slice) -> SmoothedHinge:
        return SmoothedHinge(self.width, None if self.centre is None else self.centre[rows])

    def conjugate(self, dual: Tensor, targets: Tensor) -> Tensor:
        away = dual if self.centre is None else dual - self.centre
        return Hinge().conjugate(dual, targets) + 0.5 * self.width * away.square().sum(1)

    def exact_bias(self, column: Tensor, weights: Tensor, scores: Tensor, targets: Tensor) -> Tensor:
        """Sort the bends of the slope, which each row raises by ``weights_i |c_i|`` while its lack is between 0 and the width."""
        rows = (weights * column != 0).nonzero()[:, 0]
        lack, steep = _lack(scores, targets, self)[rows], targets[rows] * column[rows, None]
        rate = weights[rows, None] * steep.square() / self.width
        start = -(weights[rows, None] * steep).clamp_min(0).sum(0)
        return zero_of_slope(torch.stack([lack / steep, (lack - self.width) / steep]), rate, start)


def _lack(scores: Tensor, targets: Tensor, loss: _Parabola | None = None) -> Tensor:
    """Return the distances of the margins below 1, (n, C); of scores shifted by the centre of a loss."""
    if loss is not None and loss.centre is not None:
        scores = scores + loss.width * loss.centre.to(scores.dtype)
    return (targets.to(scores.dtype) * scores).neg_().add_(1)
