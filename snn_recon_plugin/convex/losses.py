"""Losses of the scores, row by row, as in the convex programs of arXiv 2605.08022, section 3, with standard conjugates.

Every conjugate is finite on a set that is star-shaped around zero: a shrunk dual point stays feasible, as the certificate needs.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..errors import DataError, OptionError
from .checks import class_indices, one_hot, positive_number
from .curvature import Curvature, zero_of_slope


class Loss(ABC):
    """Convex loss of each row of scores (n, C), for prepared targets."""

    name: str  # the option value
    bound: float  # of every eigenvalue of the curvature; infinite for a loss with kinks, which then has ``smoothed``
    separable: bool = False  # True if it is a sum over outputs of losses of the output's own score, by ``by_output``

    @abstractmethod
    def prepare(self, targets: Tensor, num_outputs: int) -> Tensor:
        """Convert the user's targets into the form that the other methods take; raise a DataError if they don't fit the loss."""

    @abstractmethod
    def value(self, scores: Tensor, targets: Tensor) -> Tensor:
        """Loss of each row, (n,)."""

    @abstractmethod
    def gradient(self, scores: Tensor, targets: Tensor) -> Tensor:
        """Derivative of each row's loss in its scores, (n, C)."""

    @abstractmethod
    def curvature(self, scores: Tensor, targets: Tensor) -> Curvature:
        """Second derivative of each row's loss."""

    @abstractmethod
    def conjugate(self, dual: Tensor, targets: Tensor) -> Tensor:
        """Convex conjugate of each row's loss at ``dual`` (n, C), infinite outside its domain, (n,)."""

    def cvxpy_sum(self, cvxpy: Any, scores: Any, targets: Tensor, weights: npt.NDArray[np.float64]) -> Any:
        """Return the sum over rows as an expression of the module ``cvxpy``; without it no CVXPY solver takes the loss.

        ``scores`` is a variable of shape (n, C), ``weights`` are those of the rows, (n,).
        """
        raise NotImplementedError

    @property
    def smooth(self) -> bool:
        """True if the gradient is continuous everywhere."""
        return math.isfinite(self.bound)

    def smoothed(self, width: float, centre: Tensor | None = None) -> Loss:
        """Return a smooth loss whose conjugate is this one's plus a squared distance to ``centre`` that grows with ``width``.

        Each of its dual points is also one of this loss.  ``centre`` are dual rows (n, C), None means zero: then the smoothing lies
        at most about ``width`` below the loss.  A smooth loss returns itself; one with kinks overrides this method.
        """
        if not self.smooth:
            found, fix = f"loss {self.name!r} with kinks", "implement smoothed, or set the loss's bound if it has no kinks"
            raise OptionError(f"{found} and without a smoothing", "a method smoothed(width, centre), such as Hinge.smoothed", fix)
        return self

    def by_output(self, scores: Tensor, targets: Tensor) -> Tensor:
        """Return the losses of single outputs, (n, C); only a separable loss has them."""
        raise NotImplementedError

    def part(self, rows: slice) -> Loss:
        """Return the loss of some rows, another object only if the loss holds numbers for each row."""
        return self

    def exact_bias(self, column: Tensor, weights: Tensor, scores: Tensor, targets: Tensor) -> Tensor | None:
        """Return the minimiser b (C,) of ``sum_i weights_i loss(scores_i + column_i b)``; None if there is no exact method."""
        return None

    def predictions(self, scores: Tensor) -> Tensor:
        """Predicted class of each row, (n,)."""
        return scores.argmax(1) if scores.shape[1] > 1 else (scores[:, 0] > 0).long()


class OutputLoss(Loss):
    """Sum over outputs of a loss of the output's own score; targets are +-1 unless ``prepare`` is overridden."""

    separable = True

    def prepare(self, targets: Tensor, num_outputs: int) -> Tensor:
        """Return class indices (n,), or 0/1 per output (n, C), as +-1 of shape (n, C); floating ones (n,) are of one output."""
        if num_outputs == 1 and targets.dim() == 1 and targets.is_floating_point():
            targets = targets[:, None]
        if targets.dim() != 2 or targets.shape[1] != num_outputs:
            return one_hot(targets, num_outputs).mul_(2).sub_(1)  # in place: many outputs of many rows are gigabytes
        if not bool(((targets == 0) | (targets == 1)).all()):
            raise DataError("label indicators other than 0 and 1", "0 or 1 for each output", "pass class indices instead")
        return targets.double() * 2 - 1

    def value(self, scores: Tensor, targets: Tensor) -> Tensor:
        return self.by_output(scores, targets).sum(1)

    @abstractmethod
    def by_output(self, scores: Tensor, targets: Tensor) -> Tensor: ...


class CrossEntropy(Loss):
    """Cross-entropy ``logsumexp(z) - t'z`` for C >= 2 classes; conjugate ``sum q log q`` with ``q = t + u`` in the simplex.

    All classes get the share ``smoothing`` of the target t equally, 0 to 1, as by torch's ``label_smoothing``.
    """

    name = "cross_entropy"
    bound = 0.5

    def __init__(self, smoothing: float = 0.0) -> None:
        if not 0 <= smoothing <= 1:
            raise OptionError(f"smoothing={smoothing!r}", "a share from 0 to 1", "pass smoothing=0.1")
        self.smoothing = smoothing
        if smoothing:
            self.name = f"cross_entropy(label_smoothing={smoothing:g})"

    def prepare(self, targets: Tensor, num_outputs: int) -> Tensor:
        """Return class indices (n,) of at least two classes."""
        if num_outputs < 2:
            fix = "pass loss='logistic' for labels 0 and 1, or loss=nn.MSELoss() for values"
            raise DataError(f"{self.name} with one output", "at least two outputs", fix)
        return class_indices(targets, num_outputs)

    def value(self, scores: Tensor, targets: Tensor) -> Tensor:
        labelled = scores.gather(1, targets[:, None])[:, 0]
        if self.smoothing:
            labelled = (1 - self.smoothing) * labelled + self.smoothing * scores.mean(1)
        return torch.logsumexp(scores, 1) - labelled

    def gradient(self, scores: Tensor, targets: Tensor) -> Tensor:
        return self._less_target(_softmax(scores), targets)

    def curvature(self, scores: Tensor, targets: Tensor) -> Curvature:
        probabilities = _softmax(scores)
        return Curvature(probabilities, probabilities)

    def conjugate(self, dual: Tensor, targets: Tensor) -> Tensor:
        mass = -self._less_target(-dual, targets)
        outside = (mass < -1e-9).any(1) | ((mass.sum(1) - 1).abs() > 1e-6)
        return torch.where(outside, torch.inf, torch.special.xlogy(mass.clamp_min(0), mass.clamp_min(0)).sum(1))

    def cvxpy_sum(self, cvxpy: Any, scores: Any, targets: Tensor, weights: npt.NDArray[np.float64]) -> Any:
        hot = -self._less_target(torch.zeros(scores.shape, dtype=torch.float64, device="cpu"), targets.cpu()).numpy()
        return weights @ (cvxpy.log_sum_exp(scores, axis=1) - cvxpy.sum(cvxpy.multiply(hot, scores), axis=1))

    def _less_target(self, rows: Tensor, targets: Tensor) -> Tensor:
        """Subtract t from rows (n, C), in place."""
        if self.smoothing:
            rows -= self.smoothing / rows.shape[1]
        rows[torch.arange(len(targets), device=targets.device), targets] -= 1 - self.smoothing
        return rows


def _softmax(scores: Tensor) -> Tensor:
    """Return the softmax over the classes, in a sixth of torch.softmax's time for such short rows."""
    powers = (scores - scores.amax(1, keepdim=True)).exp_()
    return powers.div_(powers.sum(1, keepdim=True))


class Logistic(OutputLoss):
    """Logistic loss ``log(1 + exp(-y z))`` summed over outputs, y = +-1: one output is binary, several are one against the rest.

    Its conjugate is ``q log q + (1 - q) log(1 - q)`` with ``q = -y u`` in [0, 1].
    """

    name = "logistic"
    bound = 0.25

    def by_output(self, scores: Tensor, targets: Tensor) -> Tensor:
        return torch.nn.functional.softplus(-targets.to(scores.dtype) * scores, threshold=50)

    def gradient(self, scores: Tensor, targets: Tensor) -> Tensor:
        signs = targets.to(scores.dtype)
        return -signs * torch.sigmoid(-signs * scores)

    def curvature(self, scores: Tensor, targets: Tensor) -> Curvature:
        return Curvature(torch.sigmoid(scores) * torch.sigmoid(-scores))

    def conjugate(self, dual: Tensor, targets: Tensor) -> Tensor:
        mass = -targets.to(dual.dtype) * dual
        outside = ((mass < -1e-9) | (mass > 1 + 1e-9)).any(1)
        mass = mass.clamp(0, 1)
        entropy = torch.special.xlogy(mass, mass) + torch.special.xlogy(1 - mass, 1 - mass)
        return torch.where(outside, torch.inf, entropy.sum(1))

    def cvxpy_sum(self, cvxpy: Any, scores: Any, targets: Tensor, weights: npt.NDArray[np.float64]) -> Any:
        return weights @ cvxpy.sum(cvxpy.logistic(-cvxpy.multiply(targets.cpu().numpy(), scores)), axis=1)


class Squared(OutputLoss):
    """Squared loss ``1/2 ||z - y||^2``; conjugate ``1/2 ||u||^2 + u'y``.

    Class labels become one-hot targets; with one output, labels 0 and 1 are the targets 0.0 and 1.0.
    """

    name = "squared"
    bound = 1.0

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

    def __init__(self, width: float = 1.0) -> None:
        self.width = positive_number("width", width, "pass width=1.0")
        if width != 1.0:
            self.name = f"huber(delta={width:g})"

    def by_output(self, scores: Tensor, targets: Tensor) -> Tensor:
        return torch.nn.functional.huber_loss(scores, targets.to(scores.dtype), reduction="none", delta=self.width)

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
