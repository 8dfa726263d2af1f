r"""Splitting steps for collinear features: loss and penalty have separate weights, which converge to each other.

The loss takes ``W``, by its gradient and its curvature bound L in the metric of the Gram matrix G of all features.  The penalty
takes ``Z``.  With scaled multipliers U and a penalty parameter r, a step is

    W = argmin <gradient, W> + L/2 ||W - W_last||_G^2 + r/2 ||W - Z + U||^2,    Z = prox(W + U),    U = U + W - Z

(the alternating direction method of multipliers, its loss majorised, over-relaxed).  One eigendecomposition of G serves all steps
and all r, which is chosen to balance both relative residuals.  Semismooth Newton steps and proximal steps by single columns
predict zero weights from a column's own curvature.  For hundreds of nearly collinear columns that prediction is wrong for all of
them, and progress is slow.  The metric accounts for collinearity.  Products run in float64.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import torch
from torch import Tensor

from .certificate import Evaluation
from .problem import Problem
from .work import Work, work_of

__all__ = ["MOST_FEATURES", "Split", "split_steps"]

MOST_FEATURES = 5000  # an eigendecomposition of this many takes 20 s on 2 cores
_RELAXATION = 1.6
_BALANCE_EVERY, _BALANCE_RARER = 20, 1.5  # steps to the first change of r; later ones are rarer, since each undoes some convergence
_MOST_CHANGE = 5.0  # largest factor of one change of r
_LOOK_EVERY = 50
_STEPS = 5000
_STEP, _CERTIFICATE = 4, 8  # cost in products of a step's two float64 passes, and of a check's four
# The bound L is a worst case.  If the curvature changes gradually, the curvature at the current scores, with a margin, replaces it
# after 100, 200, 400 ... steps.
_FIRST_METRIC = 100
_MARGIN = 1.5
_FLATTEST = 0.01


@dataclass(frozen=True)
class Split:
    """Result of the splitting steps.

    Args:
        point: best checked point, certified.
        lower: best dual value of the loss's own weights, which is far tighter near the solution than from the penalty's weights.
    """

    point: Evaluation
    lower: float


def split_steps(problem: Problem, start: Evaluation, *, tol: float, deadline: float = math.inf, work: Work | None = None) -> Split:
    """Continue from ``start`` until the relative gap is at most ``tol``, for some thousands of steps.

    Args:
        problem: with a smooth loss, its rows all in this process.
        start: start point.
        tol: relative duality gap.
        deadline: stop at the first check after this value of ``time.perf_counter``.
        work: their cost is added to it, and its limit stops them at the next check; default no limit.
    """
    work = work or work_of(problem)
    steps = _Steps(problem, start)
    work.add(work.eigendecomposition())
    best = start
    lower = start.dual
    balance = float(_BALANCE_EVERY)
    metric = _FIRST_METRIC
    for count in range(1, _STEPS + 1):
        last = steps.split
        steps.take()
        work.add(_STEP + 2 * work.rotation())
        if count >= balance:
            steps.balance(last)
            balance = max(count + _BALANCE_EVERY, _BALANCE_RARER * count)
        if count == metric and problem.loss.gradual and work.left > work.eigendecomposition():
            steps.measure()
            work.add(work.eigendecomposition())
            metric *= 2
        if count % _LOOK_EVERY == 0:
            looked, bound = steps.look()
            work.add(_CERTIFICATE)
            lower = max(lower, bound, looked.dual)
            if not math.isfinite(looked.objective):
                break
            best = min(best, looked, key=lambda point: point.objective)
            if best.objective - lower <= tol * problem.zero_loss or time.perf_counter() > deadline or work.over:
                break
    return Split(best, lower)


class _Steps:
    """State of the splitting steps, with weights for columns of unit size; a column of size zero gets none."""

    def __init__(self, problem: Problem, start: Evaluation) -> None:
        design = problem.design
        self.problem, self.columns = problem, design.columns(None, torch.float64)
        self.alive = design.variance > 0
        self.inverse = torch.where(self.alive, design.variance.clamp_min(1e-300).rsqrt(), 0.0)
        self.weight = self.split = self._scaled(start.weight)
        self.multiplier = torch.zeros_like(self.weight)
        self.shift, self.pull = start.bias + start.weight @ design.mean, 1.0
        self.measure(bounds=True)

    def measure(self, bounds: bool = False) -> None:
        """Compute the metric of the loss's steps: from its curvature bound, or from about the curvature at the current scores."""
        problem, design = self.problem, self.problem.design
        bends = torch.full_like(design.row_weights, problem.loss.bound)
        if not bounds:
            entries = problem.loss.curvature(self._scores(), problem.targets).entries()
            coupled = 2 if entries.shape[1] > 1 else 1  # a row's sum of sizes is at most twice its diagonal entry
            bends = (_MARGIN * coupled * entries.amax(1)).clamp(_FLATTEST * problem.loss.bound, problem.loss.bound)
        gram = self.columns.leading_gram(bends, 1.0).mul_(self.inverse[:, None]).mul_(self.inverse)
        sizes, self.basis = torch.linalg.eigh(gram)
        self.bends = sizes.clamp_min(0)
        self.bias_bend = float(design.row_weights @ (bends * design.bias_column.square())) if design.has_bias else 0.0

    def take(self) -> None:
        """Update the loss's weights, the penalty's weights, and the multipliers."""
        slope, slope_shift = self.columns.adjoint(self.problem.loss.gradient(self._scores(), self.problem.targets))
        if self.bias_bend > 0:
            self.shift = self.shift - slope_shift / self.bias_bend
        right = slope * self.inverse + self.pull * (self.weight - self.split + self.multiplier)
        self.weight = self.weight - ((right @ self.basis) / (self.bends + self.pull)) @ self.basis.T
        relaxed = torch.lerp(self.split, self.weight, _RELAXATION)
        moved, step = (relaxed + self.multiplier) * self.inverse, self.inverse.square() / self.pull
        self.split = self._scaled(self.problem.penalty.prox(moved, step * self.problem.strength))
        self.multiplier = self.multiplier + relaxed - self.split

    def balance(self, last: Tensor) -> None:
        """Change the penalty parameter so that both relative residuals are of one size."""
        tiny = torch.finfo(last.dtype).tiny
        apart = float((self.weight - self.split).norm() / torch.maximum(self.weight.norm(), self.split.norm()).clamp_min(tiny))
        moved = float((self.split - last).norm() / self.multiplier.norm().clamp_min(tiny))
        if apart > 0 and moved > 0:
            change = min(_MOST_CHANGE, max(1 / _MOST_CHANGE, math.sqrt(apart / moved)))
            self.pull, self.multiplier = self.pull * change, self.multiplier / change

    def look(self) -> tuple[Evaluation, float]:
        """Return the evaluation of the penalty's weights, which have the zeros, and the dual value of the loss's weights."""
        design, split = self.problem.design, self.split * self.inverse
        raw = design.scores(self.weight * self.inverse, torch.zeros_like(self.shift))
        return self.problem.evaluate(split, self.shift - split @ design.mean), self.problem.lower_bound_at(raw)

    def _scores(self) -> Tensor:
        return self.columns.scores(self.weight * self.inverse, self.shift)

    def _scaled(self, weight: Tensor) -> Tensor:
        """Return weights for columns of unit size, from weights for features as given."""
        return torch.where(self.alive, weight / torch.where(self.alive, self.inverse, 1.0), 0.0)
