"""Contract of a loss of the scores, row by row.

Every conjugate is finite on a set that is star-shaped around zero: a shrunk dual point stays feasible, as the certificate needs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ..errors import DataError, OptionError
from .checks import one_hot

TorchLosses: TypeAlias = Mapping[type[nn.Module], Callable[..., Tensor]]


@dataclass(frozen=True)
class Curvature:
    """Second derivative of a loss in each row's scores, ``diag(diagonal_i) - rank_one_i rank_one_i'``."""

    diagonal: Tensor  # (n, C), non-negative
    rank_one: Tensor | None = None  # (n, C); None for losses that are sums over outputs

    def product(self, scores: Tensor) -> Tensor:
        """Return each row's matrix times that row of ``scores`` (n, C)."""
        result = self.diagonal * scores
        if self.rank_one is not None:
            result = result - self.rank_one * (self.rank_one * scores).sum(1, keepdim=True)
        return result

    def entries(self) -> Tensor:
        """Return the diagonals of the matrices, (n, C): the curvature in each class's own score."""
        return self.diagonal if self.rank_one is None else self.diagonal - self.rank_one.square()

    def weighted_sum(self, weights: Tensor, factors: Tensor) -> Tensor:
        """Return the sum over rows of ``weights_i D_i H_i D_i`` with H_i row i's matrix and D_i its factors, (n, C) or (n, 1)."""
        factors = factors.expand_as(self.diagonal)
        total = torch.diag(weights @ (self.diagonal * factors.square()))
        if self.rank_one is not None:
            scaled = self.rank_one * factors
            total = total - (scaled * weights[:, None]).T @ scaled
        return total

    def part(self, rows: Tensor) -> Curvature:
        """Return the matrices of some rows (m,)."""
        return Curvature(self.diagonal[rows], None if self.rank_one is None else self.rank_one[rows])

    def to(self, dtype: torch.dtype) -> Curvature:
        """Return the same curvature in another precision."""
        return Curvature(self.diagonal.to(dtype), None if self.rank_one is None else self.rank_one.to(dtype))


class Loss(ABC):
    """Convex loss of each row of scores (n, C), for prepared targets."""

    name: str  # the option value
    max_curvature: float  # largest eigenvalue of a row's second derivative, which sets step lengths; infinite with kinks
    smooth: bool = True  # True if the gradient is continuous everywhere; a loss with kinks has ``cvxpy_sum`` and ``feasible``
    separable: bool = False  # True if it is a sum over outputs of losses of the output's own score, by ``by_output``
    binary: bool = False  # True if every output may have a label of its own, 0 or 1
    fits_values: bool = False  # True if targets are numbers that the scores are to reach
    bends: str | None = None  # "everywhere" if its second derivative in each score is 1, "partly" if it is 1 or 0; else None
    has_temperature: bool = False  # True if it is of class probabilities: scores over one number, a temperature, decide alike
    softmax: bool = False  # True if it is of the softmax of a row's scores: one number added to all of them changes nothing
    substitute: str | None = None  # name of a loss that may be solved in its place, as it generalises better
    torch_losses: ClassVar[TorchLosses] = {}  # losses of torch that it stands for, by class, with their functions
    equals_torch: bool = True  # False if those are only similar

    @classmethod
    def of_torch(cls, loss: Any) -> Loss:
        """Return the loss that stands for a module of ``torch_losses``; refuse options that it lacks by an OptionError."""
        return cls()

    def class_weights(self, weight: Tensor) -> Tensor | None:
        """Return the weights of rows by class (C,) for those of its torch loss; None if the loss itself weighs outputs."""
        return weight

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
        """Return the sum over rows in CVXPY, for a variable ``scores`` (n, C); a loss without it is solved here alone."""
        raise NotImplementedError

    def feasible(self, dual: Tensor, targets: Tensor) -> Tensor:
        """Return the nearest dual rows (n, C) at which the conjugate of a loss with kinks is finite."""
        fix = "implement feasible, or set smooth = True if it has no kinks"
        needed = "a method feasible(dual, targets), such as Hinge.feasible"
        raise OptionError(f"loss {self.name!r} with kinks and without feasible", needed, fix)

    def by_output(self, scores: Tensor, targets: Tensor) -> Tensor:
        """Return the losses of single outputs, (n, C); only a separable loss has them."""
        raise NotImplementedError

    def exact_bias(self, column: Tensor, weights: Tensor, scores: Tensor, targets: Tensor) -> Tensor | None:
        """Return the minimiser b (C,) of ``sum_i weights_i loss(scores_i + column_i b)``; None if there is no exact method."""
        return None

    def predictions(self, scores: Tensor) -> Tensor:
        """Predicted class of each row, (n,)."""
        return scores.argmax(1) if scores.shape[1] > 1 else (scores[:, 0] > 0).long()


class OutputLoss(Loss):
    """Sum over outputs of a loss of the output's own score; targets are +-1 unless ``prepare`` is overridden."""

    separable, binary = True, True

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


def zero_of_slope(ends: Tensor, rate: Tensor, start: Tensor) -> Tensor:
    """Return where a piecewise linear, ascending slope is zero, (C,).

    It is ``start`` (C,) on the far left, and row i adds the rate (n, C) between its two ends (2, n, C).
    """
    order = torch.cat([ends.amin(0), ends.amax(0)]).sort(0)
    rates = torch.cat([rate, -rate]).gather(0, order.indices).cumsum(0)
    rises = rates[:-1] * order.values.diff(dim=0)
    slopes = start + torch.cat([torch.zeros_like(rises[:1]), rises]).cumsum(0)
    # Start at the last bend with a slope of at most zero, and interpolate linearly to slope zero.
    last = ((slopes <= 0).sum(0) - 1).clamp(0, len(slopes) - 2)[None]
    slope, lift = slopes.gather(0, last), rises.gather(0, last)
    share = torch.where(lift > 0, -slope / lift, 0.0).clamp(0, 1)
    here, there = order.values.gather(0, last), order.values.gather(0, last + 1)
    return (here + share * (there - here))[0]
