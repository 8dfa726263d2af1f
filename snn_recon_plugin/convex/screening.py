r"""Safe screening: features whose weights are certainly zero at the optimum, derived from the duality gap alone.

The losses' gradients are Lipschitz with constant ``bound``, so their conjugates are strongly convex.  The optimal dual rows U* lie
in a ball around any feasible U:

    sum_i w_i ||U_i - U*_i||^2 <= 2 bound gap.

For feature j, centred, the gradient at the optimum is therefore within ``sqrt(variance_j * 2 * bound * gap)`` of the gradient at
U.  If even its largest possible value is below the strength, the weights of that feature are zero.  The rule is from Ndiaye,
Fercoq, Gramfort and Salmon (Gap safe screening rules for sparsity enforcing penalties, JMLR 2017).  Here the bias is free, and its
equality lets features be centred.

Screening saves passes over unused features; Newton steps work on the active ones anyway.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .certificate import Evaluation
from .problem import Problem

__all__ = ["Screen", "safe_zeros", "survivors"]

_FEWEST = 64  # fewer features than these cost next to nothing
_ROUNDING = 1e-13  # rounding error of the gap in float64 sums, over the loss at zero
_SHARE = 0.5  # a smaller program is built if at most this share remains


def safe_zeros(problem: Problem, point: Evaluation) -> Tensor:
    """Return True for features with zero weights in every optimum, bool (P,).

    Args:
        problem: with a smooth loss; a penalty that is not sparse has no such features.
        point: any evaluated point of it.
    """
    if not problem.penalty.sparse or not problem.loss.smooth:
        return torch.zeros(problem.design.num_features, dtype=torch.bool, device=problem.design.device)
    scale = problem.feasible_scale(point.gradient)
    gap = max(point.gap, 0.0) + _ROUNDING * max(abs(point.objective), problem.zero_loss)
    radius = math.sqrt(2 * problem.loss.bound * gap)
    largest = scale * problem.penalty.dual_sizes(point.gradient) + radius * problem.design.largest_variance.sqrt()
    return problem.design.shards.same(largest < problem.strength)


def survivors(problem: Problem, point: Evaluation) -> Tensor | None:
    """Return the indices (K,) of features that may have weights, if a smaller program of them is worth it, else None."""
    features = problem.design.num_features
    if features < _FEWEST:
        return None
    left = (~safe_zeros(problem, point)).nonzero()[:, 0]
    return left if 0 < len(left) <= _SHARE * features else None


class Screen:
    """Program from which certainly unused features are removed as the gap falls.

    Both programs have the same optimum, so the gaps of the smaller one also hold for the whole one.

    Args:
        whole: the program.
    """

    def __init__(self, whole: Problem) -> None:
        self.problem = self._whole = whole
        self._index: Tensor | None = None
        self._done = False

    @property
    def narrowed(self) -> bool:
        """True if ``problem`` has fewer features than the whole."""
        return self._index is not None

    def narrow(self, point: Evaluation) -> tuple[Evaluation, Tensor] | None:
        """Replace ``problem`` by a smaller one if that is worth it; return the point in it, and the features kept of the last one.

        Return None if the program stays the same.
        """
        left = None if self._done else survivors(self.problem, point)
        if left is None:
            return None
        self.problem = self.problem.of_features(left)
        self._index = left if self._index is None else self._index[left]
        return self.problem.evaluate(point.weight[:, left], point.bias), left

    def widen(self, point: Evaluation) -> Evaluation:
        """Make ``problem`` the whole program for good, and return the point in it."""
        if self._index is None:
            return point
        weight = self._whole.zero_point()[0].index_copy_(1, self._index, point.weight)
        self.problem = self._whole
        self._index = None
        self._done = True
        return self._whole.evaluate(weight, point.bias)
