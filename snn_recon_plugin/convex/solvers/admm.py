r"""ADMM for collinear features: loss and penalty have separate weights, which converge to each other.

The loss takes ``W``, by its gradient and its curvature bound L in the metric of the Gram matrix G of all features.  The penalty
takes ``Z``.  With scaled multipliers U and a penalty parameter rho, a step is

    W = argmin <gradient, W> + L/2 ||W - W_last||_G^2 + rho/2 ||W - Z + U||^2,    Z = prox(W + U),    U = U + W - Z

(the alternating direction method of multipliers, its loss majorised, over-relaxed).  One eigendecomposition of G serves all steps
and all rho, which is chosen to balance both relative residuals.  Newton and proximal steps predict zero weights from a column's own
curvature, which is wrong for hundreds of nearly collinear columns.  The metric accounts for collinearity.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..certificate import Evaluation
from ..penalties import inverse
from ..problem import Problem
from .solver import Outcome, Run, Solution, Solver, needs_one_matrix

_MAX_FEATURES = 5000  # an eigendecomposition of this many takes 20 s on 2 cores
_RELAXATION = 1.6
_BALANCE_EVERY = 20  # steps to the first change of rho
_BALANCE_RARER = 1.5  # steps done over those at the last change: each change undoes some convergence
_MAX_CHANGE = 5.0  # largest factor of one change of rho
_STEPS, _CHECK_EVERY = 5000, 50
_STEP, _CERTIFICATE = 4, 8  # cost in products of a step's two float64 passes, and of a check's four


class Admm(Solver):
    """ADMM on all features, for smooth losses and any penalty with a prox, if features nearly span each other."""

    name = "admm"

    def supports(self, problem: Problem) -> str | None:
        if not problem.loss.smooth:
            return "a smooth loss"
        if problem.features.num_features > _MAX_FEATURES:
            return f"at most {_MAX_FEATURES} features"
        return needs_one_matrix(problem.features)  # an eigendecomposition serves all outputs

    def _minimise(self, run: Run) -> Solution:
        problem, budget = run.problem, run.budget
        steps, outcome = _Steps(problem, run.begin()), None
        budget.add(budget.eigendecomposition())
        balance = float(_BALANCE_EVERY)
        for count in range(_STEPS + 1):
            if count % _CHECK_EVERY == 0:
                if count:
                    point, bound = steps.evaluate()
                    budget.add(_CERTIFICATE)
                    run.keep(point.objective, point.weight, point.bias, max(bound, point.dual))
                    if not math.isfinite(point.objective):
                        outcome = Outcome.NON_FINITE
                        break
                outcome = run.record()
                if outcome is not None:
                    break
            last = steps.split
            steps.take()
            budget.add(_STEP + 2 * budget.rotation())
            if count + 1 >= balance:
                steps.balance(last)
                balance = max(count + 1 + _BALANCE_EVERY, _BALANCE_RARER * (count + 1))
        return run.solution(outcome or Outcome.ITERATION_LIMIT, count)


class _Steps:
    """State of the steps, in float64, with weights for columns of unit size; a column of size zero gets none."""

    def __init__(self, problem: Problem, start: Evaluation) -> None:
        features = problem.features
        self.problem, self.columns = problem, features.columns(None, torch.float64)
        self.size = features.variance[0].sqrt()
        self.inverse = inverse(self.size)
        self.weight = self.split = start.weight * self.size
        self.multiplier = torch.zeros_like(self.weight)
        self.shift, self.rho = start.bias + features.centring(start.weight), 1.0
        bound, ones = problem.loss.bound, torch.ones_like(features.row_weights)
        gram = self.columns.gram(ones).mul_(bound * self.inverse[:, None]).mul_(self.inverse)
        sizes, self.basis = torch.linalg.eigh(gram)
        self.eigenvalues = sizes.clamp_min(0)
        self.bias_curvature = bound * float(features.row_weights @ features.bias_column[:, 0].square())

    def take(self) -> None:
        """Update the loss's weights, the penalty's weights, and the multipliers."""
        scores = self.columns.centred_scores(self.weight * self.inverse, self.shift)
        slope, slope_shift = self.columns.adjoint(self.problem.loss.gradient(scores, self.problem.targets))
        if self.bias_curvature > 0:
            self.shift = self.shift - slope_shift / self.bias_curvature
        right = slope * self.inverse + self.rho * (self.weight - self.split + self.multiplier)
        self.weight = self.weight - ((right @ self.basis) / (self.eigenvalues + self.rho)) @ self.basis.T
        relaxed = torch.lerp(self.split, self.weight, _RELAXATION)
        moved, step = (relaxed + self.multiplier) * self.inverse, self.inverse.square() / self.rho
        self.split = self.problem.penalty.prox(moved, step * self.problem.strength) * self.size
        self.multiplier = self.multiplier + relaxed - self.split

    def balance(self, last: Tensor) -> None:
        """Change the penalty parameter so that both relative residuals are of one size."""
        tiny = torch.finfo(last.dtype).tiny
        apart = float((self.weight - self.split).norm() / torch.maximum(self.weight.norm(), self.split.norm()).clamp_min(tiny))
        moved = float((self.split - last).norm() / self.multiplier.norm().clamp_min(tiny))
        if apart > 0 and moved > 0:
            change = min(_MAX_CHANGE, max(1 / _MAX_CHANGE, math.sqrt(apart / moved)))
            self.rho, self.multiplier = self.rho * change, self.multiplier / change

    def evaluate(self) -> tuple[Evaluation, float]:
        """Return the evaluation of the penalty's weights, which have the zeros, and the dual value of the loss's weights."""
        split = self.split * self.inverse
        bound = self.problem.evaluate(self.weight * self.inverse, torch.zeros_like(self.shift)).dual
        return self.problem.evaluate(split, self.shift - self.problem.features.centring(split)), bound
