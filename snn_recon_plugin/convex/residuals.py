"""Losses of values, as in arXiv 2605.08022, section 3, with standard conjugates."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from ..errors import DataError, OptionError
from .checks import one_hot, positive_number
from .curvature import Curvature, zero_of_slope
from .loss import OutputLoss, TorchLosses


class Squared(OutputLoss):
    """Squared loss ``1/2 ||z - y||^2``; conjugate ``1/2 ||u||^2 + u'y``.

    Class labels become one-hot targets; with one output, labels 0 and 1 are the targets 0.0 and 1.0.
    """

    name = "squared"
    max_curvature = 1.0
    binary, fits_values = False, True
    torch_losses: ClassVar[TorchLosses] = {nn.MSELoss: functional.mse_loss}

    def prepare(self, targets: Tensor, num_outputs: int) -> Tensor:
        """Return floating targets (n, C), or class indices (n,), as float64 of shape (n, C)."""
        if targets.is_floating_point():
            columns = targets[:, None] if targets.dim() == 1 else targets
            if columns.dim() != 2 or columns.shape[1] != num_outputs:
                found, fix = (
                    f"regression targets of shape {tuple(targets.shape)}",
                    "reshape them, or build a readout with as many outputs",
                )
                raise DataError(found, f"shape (samples, {num_outputs}), one value for each output of the readout", fix)
            if not bool(torch.isfinite(columns).all()):
                raise DataError("targets with NaN or infinite values", "finite targets", "clean the targets")
            return columns.double()
        return one_hot(targets, num_outputs)

    def by_output(self, scores: Tensor, targets: Tensor) -> Tensor:
        return 0.5 * (scores - targets.to(scores.dtype)).square()

    def gradient(self, scores: Tensor, targets: Tensor) -> Tensor:
        return scores - targets.to(scores.dtype)

    def curvature(self, scores: Tensor, targets: Tensor) -> Curvature:
        return Curvature(torch.ones_like(scores))

    def conjugate(self, dual: Tensor, targets: Tensor) -> Tensor:
        return (0.5 * dual.square() + dual * targets.to(dual.dtype)).sum(1)

    def cvxpy_sum(self, cvxpy: Any, scores: Any, targets: Tensor, weights: npt.NDArray[np.float64]) -> Any:
        return 0.5 * cvxpy.sum_squares(cvxpy.multiply(weights[:, None] ** 0.5, scores - targets.cpu().numpy()))

    def predictions(self, scores: Tensor) -> Tensor:
        """Return the class of the largest score; for one output, class 1 above the middle of its targets 0 and 1."""
        return super().predictions(scores) if scores.shape[1] > 1 else (scores[:, 0] > 0.5).long()


class Huber(Squared):
    """Squared loss up to a residual ``r = z - y`` of ``width``, linear beyond: a few targets that are far off weigh less.

    Conjugate ``1/2 ||u||^2 + u'y`` where no entry of u exceeds the width.

    Args:
        width: residual from which the loss is linear, torch's ``delta``, above 0.
    """

    name = "huber"
    torch_losses: ClassVar[TorchLosses] = {nn.HuberLoss: functional.huber_loss, nn.SmoothL1Loss: functional.smooth_l1_loss}

    def __init__(self, width: float = 1.0) -> None:
        self.width = positive_number("width", width, "pass width=1.0")
        if width != 1.0:
            self.name = f"huber(delta={width:g})"

    @classmethod
    def of_torch(cls, loss: Any) -> Huber:
        option = "delta" if isinstance(loss, nn.HuberLoss) else "beta"  # SmoothL1Loss is the Huber loss over its beta
        width = float(getattr(loss, option))
        if not width > 0:
            found = f"{option}={width:g} in {type(loss).__name__}, an absolute error with a kink"
            raise OptionError(found, "a value above 0", "pass loss=nn.HuberLoss()")
        return cls(width)

    def by_output(self, scores: Tensor, targets: Tensor) -> Tensor:
        return functional.huber_loss(scores, targets.to(scores.dtype), reduction="none", delta=self.width)

    def gradient(self, scores: Tensor, targets: Tensor) -> Tensor:
        return super().gradient(scores, targets).clamp(-self.width, self.width)

    def curvature(self, scores: Tensor, targets: Tensor) -> Curvature:
        return Curvature(((scores - targets.to(scores.dtype)).abs() <= self.width).to(scores.dtype))

    def conjugate(self, dual: Tensor, targets: Tensor) -> Tensor:
        outside = (dual.abs() > self.width * (1 + 1e-9)).any(1)
        return torch.where(outside, torch.inf, super().conjugate(dual, targets))

    def cvxpy_sum(self, cvxpy: Any, scores: Any, targets: Tensor, weights: npt.NDArray[np.float64]) -> Any:
        """Return the weighted sum; CVXPY's Huber function is twice this one."""
        return 0.5 * weights @ cvxpy.sum(cvxpy.huber(scores - targets.cpu().numpy(), self.width), axis=1)

    def exact_bias(self, column: Tensor, weights: Tensor, scores: Tensor, targets: Tensor) -> Tensor:
        """Sort the bends of the slope, for targets so far off that every residual is beyond the width.

        The slope starts at ``-width`` times the sum of ``weights_i |c_i|``.  A row raises it while its residual is within it.
        """
        rows = (weights * column != 0).nonzero()[:, 0]
        column, weights = column[rows, None], weights[rows, None]
        centre, half = (targets[rows] - scores[rows]) / column, self.width / column.abs()
        rate = (weights * column.square()).expand_as(centre)
        return zero_of_slope(torch.stack([centre - half, centre + half]), rate, -self.width * (weights * column.abs()).sum(0))
