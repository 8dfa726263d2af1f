r"""Losses of the margin ``m = y z`` with y = +-1: hinge, its smoothing, and the squared hinge.

One output is binary; several are one against the rest, and the losses of all outputs are summed.  Every conjugate is finite on a
set that is star-shaped around zero, as the certificate requires.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .curvature import Curvature
from .losses import Loss, signs_of

__all__ = ["Hinge", "SmoothedHinge", "SquaredHinge"]


class _Margin(Loss):
    """Loss of a margin, with targets +-1."""

    def prepare(self, targets: Tensor, num_outputs: int) -> Tensor:
        """Return class indices (n,), or 0/1 per output (n, C), as +-1 of shape (n, C)."""
        return signs_of(targets, num_outputs)


class SquaredHinge(_Margin):
    """Squared hinge ``1/2 max(0, 1 - m)^2``; conjugate ``1/2 u^2 + u y`` where ``u y <= 0``."""

    name = "squared_hinge"
    bound = 1.0

    def value(self, scores: Tensor, targets: Tensor) -> Tensor:
        """Loss of each row, (n,)."""
        return self.by_output(scores, targets).sum(1)

    def by_output(self, scores: Tensor, targets: Tensor) -> Tensor:
        """Losses of single outputs, (n, C)."""
        return 0.5 * _lack(scores, targets).clamp_min(0).square()

    def gradient(self, scores: Tensor, targets: Tensor) -> Tensor:
        """Return ``-y max(0, 1 - m)``."""
        return -targets.to(scores.dtype) * _lack(scores, targets).clamp_min(0)

    def curvature(self, scores: Tensor, targets: Tensor) -> Curvature:
        """Return 1 where the margin is below 1, else 0 (one member of the generalised second derivative)."""
        return Curvature((_lack(scores, targets) > 0).to(scores.dtype))

    def conjugate(self, dual: Tensor, targets: Tensor) -> Tensor:
        """Return ``1/2 u^2 + u y`` where ``u y <= 0``, infinite elsewhere."""
        signed = dual * targets.to(dual.dtype)
        outside = (signed > 1e-9).any(1)
        return torch.where(outside, torch.inf, (0.5 * dual.square() + signed).sum(1))


class Hinge(_Margin):
    """Hinge ``max(0, 1 - m)``; conjugate ``u y`` on ``-1 <= u y <= 0``.

    It has a kink, so solvers work on its smoothings.  The certificate is always for the hinge itself.
    """

    name = "hinge"
    bound = float("inf")

    def value(self, scores: Tensor, targets: Tensor) -> Tensor:
        """Loss of each row, (n,)."""
        return self.by_output(scores, targets).sum(1)

    def by_output(self, scores: Tensor, targets: Tensor) -> Tensor:
        """Losses of single outputs, (n, C)."""
        return _lack(scores, targets).clamp_min(0)

    def gradient(self, scores: Tensor, targets: Tensor) -> Tensor:
        """Return a subgradient: ``-y`` where the margin is below 1, else 0."""
        return -targets.to(scores.dtype) * (_lack(scores, targets) > 0)

    def curvature(self, scores: Tensor, targets: Tensor) -> Curvature:
        """Return zero: the loss is piecewise linear."""
        return Curvature(torch.zeros_like(scores))

    def conjugate(self, dual: Tensor, targets: Tensor) -> Tensor:
        """Return ``u y`` on ``-1 <= u y <= 0``, infinite elsewhere."""
        signed = dual * targets.to(dual.dtype)
        outside = ((signed > 1e-9) | (signed < -1 - 1e-9)).any(1)
        return torch.where(outside, torch.inf, signed.sum(1))

    def smoothed(self, width: float, centre: Tensor | None = None) -> SmoothedHinge:
        """Return its Moreau envelope, shifted to a dual point; without one at most ``width / 2`` an output below the hinge."""
        return SmoothedHinge(width, centre)

    def exact_bias(self, column: Tensor, weights: Tensor, scores: Tensor, targets: Tensor) -> Tensor:
        """Return the minimiser in b, output by output, by sorting the kinks."""
        return _kink_bias(column, weights, scores, targets)


class SmoothedHinge(_Margin):
    """Moreau envelope of the hinge around a dual point V: ``e(z + v V) - v/2 ||V||^2`` with width v.

    ``e`` replaces the hinge's kink by a parabola over margins from ``1 - v`` to 1.  It is ``(1 - m)^2 / (2 v)`` on that interval,
    ``1 - m - v / 2`` below, and 0 above.  The conjugate is the hinge's plus ``v/2 ||u - V||^2``, so every dual point is also one
    of the hinge.  If V is optimal for the hinge, the smoothing costs nothing.

    Args:
        width: v, positive.
        centre: V, (n, C); None means zero.
    """

    name = "smoothed_hinge"

    def __init__(self, width: float, centre: Tensor | None = None) -> None:
        self.width, self.centre = width, centre
        self.bound = 1 / width

    def value(self, scores: Tensor, targets: Tensor) -> Tensor:
        """Loss of each row, (n,)."""
        return self.by_output(scores, targets).sum(1)

    def by_output(self, scores: Tensor, targets: Tensor) -> Tensor:
        """Losses of single outputs, (n, C)."""
        lack = self._lack(scores, targets)
        bent = lack.clamp(0, self.width)
        values = bent.square() / (2 * self.width) + (lack - self.width).clamp_min(0)
        return values if self.centre is None else values - 0.5 * self.width * self.centre.to(scores.dtype).square()

    def gradient(self, scores: Tensor, targets: Tensor) -> Tensor:
        """Return ``-y`` times ``(1 - m) / v`` clipped to 0 .. 1, with m the margin of the shifted scores."""
        return -targets.to(scores.dtype) * (self._lack(scores, targets) / self.width).clamp(0, 1)

    def curvature(self, scores: Tensor, targets: Tensor) -> Curvature:
        """Return ``1 / v`` on the parabola, else 0."""
        lack = self._lack(scores, targets)
        return Curvature(((lack > 0) & (lack < self.width)).to(scores.dtype) / self.width)

    def conjugate(self, dual: Tensor, targets: Tensor) -> Tensor:
        """Return ``u y + v/2 ||u - V||^2`` on ``-1 <= u y <= 0``, infinite elsewhere."""
        away = dual if self.centre is None else dual - self.centre
        return Hinge().conjugate(dual, targets) + 0.5 * self.width * away.square().sum(1)

    def exact_bias(self, column: Tensor, weights: Tensor, scores: Tensor, targets: Tensor) -> Tensor:
        """Return the minimiser in b, output by output, by sorting the bends of the slope, for Newton steps on a flat loss."""
        return _bend_bias(column, weights, self._lack(scores, targets), targets, self.width)

    def _lack(self, scores: Tensor, targets: Tensor) -> Tensor:
        return _lack(scores if self.centre is None else scores + self.width * self.centre.to(scores.dtype), targets)


def _kink_bias(column: Tensor, weights: Tensor, scores: Tensor, signs: Tensor) -> Tensor:
    """Return the bias that minimises ``sum_i weights_i max(0, 1 - y_i (z_i + c_i b))`` exactly, output by output.

    The objective is piecewise linear with kinks at ``(y_i - z_i) / c_i``, where its slope rises by ``weights_i |c_i|``.  The slope
    starts at minus the sum of ``weights_i |c_i|`` over rows with ``y_i c_i > 0``.  The minimum is the first kink at which it
    reaches zero.

    Args:
        column: c, (n,).
        weights: (n,).
        scores: z, (n, C), without the bias.
        signs: y, (n, C).

    Returns:
        (C,).
    """
    rows = (weights * column != 0).nonzero()[:, 0]
    column = column[rows, None]
    scores = scores[rows]
    signs = signs[rows]
    rise = (weights[rows, None] * column.abs()).expand_as(signs)
    kinks, order = ((signs - scores) / column).sort(0)
    slope = rise.gather(0, order).cumsum(0) - torch.where(signs * column > 0, rise, 0.0).sum(0)
    first = (slope < -1e-15).sum(0).clamp_max(len(rows) - 1)
    return kinks.gather(0, first[None])[0]


def _bend_bias(column: Tensor, weights: Tensor, lack: Tensor, signs: Tensor, width: float) -> Tensor:
    """Return the bias that minimises the sum over rows of ``weights_i`` times a smoothed hinge, output by output.

    The slope in b is piecewise linear.  It starts at minus the sum of ``weights_i y_i c_i`` over the rows where that is positive.
    Each row raises it by ``weights_i |c_i|`` while its lack ``lack_i - y_i c_i b`` lies between 0 and ``width``.

    Args:
        column: c, (n,).
        weights: (n,).
        lack: (n, C), without the bias.
        signs: y, (n, C).
        width: width of the smoothing.

    Returns:
        (C,).
    """
    rows = (weights * column != 0).nonzero()[:, 0]
    lack, steep = lack[rows], signs[rows] * column[rows, None]
    rate = weights[rows, None] * steep.square() / width
    ends = torch.stack([lack / steep, (lack - width) / steep])
    order = torch.cat([ends.amin(0), ends.amax(0)]).sort(0)
    rates = torch.cat([rate, -rate]).gather(0, order.indices).cumsum(0)
    rises = rates[:-1] * order.values.diff(dim=0)
    start = -(weights[rows, None] * steep).clamp_min(0).sum(0)
    slopes = start + torch.cat([torch.zeros_like(rises[:1]), rises]).cumsum(0)
    # Start at the last bend with a slope of at most zero, and interpolate linearly to slope zero.
    last = ((slopes <= 0).sum(0) - 1).clamp(0, len(slopes) - 2)[None]
    slope, lift = slopes.gather(0, last), rises.gather(0, last)
    share = torch.where(lift > 0, -slope / lift, 0.0).clamp(0, 1)
    here, there = order.values.gather(0, last), order.values.gather(0, last + 1)
    return (here + share * (there - here))[0]


def _lack(scores: Tensor, targets: Tensor) -> Tensor:
    """Return the distances of the margins below 1, (n, C)."""
    return 1 - targets.to(scores.dtype) * scores
