"""Proximal Newton steps, exact or by preconditioned conjugate gradients, with a sparse penalty after accelerated proximal steps.

While a sparse penalty's active set is still wrong, an entry or group that crosses the penalty's kink stays at zero.  A step that
had to be shortened much is followed by proximal steps, which correct the active set.

One class against the rest, with a separable penalty, is a separate program for each output.  The outputs share every pass over the
features.  Each has its own conjugate gradient steps, step length and damping, so no output waits for the hardest.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..features import Features
from ..problem import Evaluation, Problem
from .newton_step import Direction, curvature_moments, exact_direction, has_exact_steps, newton_direction, prox_point
from .proximal import accelerate
from .solver import EVALUATION, Outcome, Solution, Solver, SolveRecord, Start

_START_STEPS = 250  # proximal steps from zero; Newton steps before them would be shortened much by the line search
_LENGTHS, _LINE_SLOPE = 20, 1e-3  # steps of an exact line search, and the slope at its end over the first one
_EXACT_SLOPE = 0.1  # that after an exact step, whose length is nearly 1: a path of small programs then takes half as long
_LEAST_LENGTH = 2.0**-15  # shorter ones mean that rounding left no descent
# Proximal steps from a warm start.  Its residual predicts several times as many weights as the solution has, and a Newton step that
# admits them all is cut to a hundredth.  These steps move only the features that might get a weight.
_WARM_STEPS = 60
_MANY = 1.2  # predicted weights over current ones
_REPAIR_STEPS = 30  # proximal steps after a Newton step that had to be shortened
_HALVINGS = 8  # of a Newton step
_SETTLED = 1e-3  # relative decrease of the objective by 10 proximal steps below which no more follow
_DAMPING = 0.3  # initial value, per unit of relative gap and curvature: vanishes at the solution, where steps converge fast
_MAX_DAMPING = 1e3
_FLOAT32_ITERATIONS = 40  # well-posed programs need half as many; longer solves suffer from float32's rounding
_STALLS = 4
_SEARCH = 8  # cost of a Newton step besides conjugate gradients: moments, right-hand side, line search and evaluation
# Slow: after so many steps the gap is over half of that so many steps before; with a sparse penalty, and with a smooth one.
_SLOW_SPARSE, _SLOW_SMOOTH, _SLOW_SHARE = (20, 10), (5, 4), 0.5


class Newton(Solver):
    """Proximal Newton method; if not ``patient`` it stops, SLOW, where larger strengths are the better way."""

    name = "newton"

    def __init__(self, max_iterations: int = 200, patient: bool = True) -> None:
        self.max_iterations = max_iterations
        self.patient = patient

    def supports(self, problem: Problem) -> str | None:
        return None if problem.loss.smooth else "a smooth loss"

    def _minimise(self, record: SolveRecord) -> Solution:
        steps = _Steps(record)
        for iterations in range(self.max_iterations + 1):
            outcome = record.add_to_trace() or self._given_up(steps, iterations)
            if outcome is not None or iterations == self.max_iterations:
                break
            steps.take(iterations)
            record.keep(steps.point.objective, steps.point.weight, steps.point.bias, steps.point.dual)
            if not math.isfinite(steps.point.objective):
                return record.solution(Outcome.NON_FINITE, iterations + 1, steps.scale)
        return record.solution(outcome or Outcome.ITERATION_LIMIT, iterations, steps.scale)

    def _given_up(self, steps: _Steps, iterations: int) -> Outcome | None:
        """Return the reason to stop without a solution, or None; where float32 may be to blame, go on in float64."""
        stalled, slow, sparse = steps.stalled >= _STALLS, steps.slow(iterations), steps.problem.penalty.sparse
        if slow and not self.patient:
            return Outcome.SLOW
        if steps.dtype is torch.float32 and (stalled or (slow and sparse) or iterations == _FLOAT32_ITERATIONS):
            steps.dtype, steps.stalled = torch.float64, 0
            return None
        return Outcome.STALLED if stalled else None


class _Steps:
    """Current point of one solve, and what carries over from step to step."""

    def __init__(self, record: SolveRecord) -> None:
        self.record, self.problem, self.budget, start = record, record.problem, record.budget, record.start
        self.point = record.begin()
        self.budget.add(EVALUATION)
        self.warm = start is not None and self.point.objective <= self.problem.zero_loss
        if start is not None and not self.warm:  # worse than zero, e.g. from other data
            record.start = Start(*self.problem.zero_point(), dual=start.dual)
            self.point = record.begin()
        self.dtype, self.exact = self.problem.working_dtype, has_exact_steps(self.problem)
        self.scale = None if start is None else start.step  # step length of the proximal steps
        self.damping = self.point.bias.new_full((1,), _DAMPING)  # one for each output if they are separate
        self.stalled = 0

    def slow(self, iterations: int) -> bool:
        """Return True if the last steps lowered the gap by little."""
        trace = self.record.trace
        after, over = _SLOW_SPARSE if self.problem.penalty.sparse else _SLOW_SMOOTH
        return iterations >= after and trace[-1].relative_gap > _SLOW_SHARE * trace[-1 - over].relative_gap

    def take(self, iterations: int) -> None:
        """Take a Newton step; at the beginning, where a sparse penalty would shorten it much, take proximal steps."""
        sparse, first = self.problem.penalty.sparse, iterations == 0
        working = self._admitted() if first and self.warm and sparse else None
        if first and not self.warm and sparse:
            self._first_order(_START_STEPS, None, _SETTLED)
        elif working is not None:
            self._first_order(_WARM_STEPS, working)
        else:
            self._newton()

    def _first_order(self, steps: int, index: Tensor | None, settled: float = 0.0) -> None:
        """Take proximal steps on the features ``index``, which must contain the support; None means all."""
        problem, budget, full = self.problem, self.budget, self.point.weight
        columns = problem.features.columns(index, self.dtype)
        weight, bias = (full if index is None else full[:, index]).to(self.dtype), self.point.bias.to(self.dtype)
        steps, start = budget.steps(steps, columns.num_features), Start(weight, bias, self.scale)
        found, products = accelerate(problem, columns, start, steps, settled=settled, deadline=budget.deadline)
        self.scale, weight = found.step, found.weight.double()
        budget.add(products, columns.num_features)
        self._move(weight if index is None else torch.zeros_like(full).index_copy_(1, index, weight), found.bias)

    def _move(self, weight: Tensor, bias: Tensor) -> None:
        """Go to a point, unless its objective is higher."""
        self.budget.add(EVALUATION)
        moved = self.problem.evaluate(weight, bias)
        if not moved.objective > self.point.objective:
            self.point = moved

    def _admitted(self) -> Tensor | None:
        """Return the working set of a Newton step if that step would admit many more weights than there are now, else None."""
        moments = curvature_moments(self.problem, self.problem.loss.curvature(self.point.scores, self.problem.targets))
        proximal = prox_point(self.problem, self.point, moments)
        if int((proximal != 0).sum()) <= _MANY * int((self.point.weight != 0).sum()):
            return None
        return _working_set(proximal, self.point.weight)

    def _newton(self) -> None:
        """Take a Newton step, followed by proximal steps if it was shortened much or refused."""
        problem, before = self.problem, self.point
        direction = exact_direction(problem, before, self.budget, self.dtype) if self.exact else self._inexact()
        self.budget.add(_SEARCH)
        sizes, self.point = search(problem, before, direction, _EXACT_SLOPE if self.exact else _LINE_SLOPE)
        if problem.penalty.sparse:
            self._repair(direction, sizes)
        improved = self.point.gap < before.gap or self.point.objective < before.objective - 1e-13 * abs(before.objective)
        self.stalled = 0 if improved else self.stalled + 1

    def _inexact(self) -> Direction:
        """Return a step by conjugate gradients."""
        problem, before = self.problem, self.point
        relative = max(before.gap / problem.zero_loss, 0.0)
        # Loose at first, then tied to the gap (Eisenstat-Walker), and to the tolerance: the dual's error follows the residual.
        tol = min(0.1, max(1e-3, 0.3 * math.sqrt(relative), 0.3 * self.record.tol / max(relative, self.record.tol)))
        return newton_direction(problem, before, self.damping * min(relative, 1.0), self.budget, dtype=self.dtype, tol=tol)

    def _repair(self, direction: Direction, sizes: Tensor) -> None:
        """Adapt the damping to the step lengths, (C,) or (1,), as Levenberg and Marquardt; repair a short step by proximal ones."""
        short, factor = sizes < 0.3, torch.ones_like(sizes)
        if self.problem.penalty.separable:  # a group norm has curvature itself
            factor[sizes == 1] = 0.25
        factor[short] = 4.0
        self.damping = (self.damping * factor).clamp_max(_MAX_DAMPING)
        if bool(short.any()):
            working = _working_set(direction[2], self.point.weight)
            self._first_order(_REPAIR_STEPS, working if len(working) else None, _SETTLED)


def _working_set(proximal: Tensor, weight: Tensor) -> Tensor:
    """Return the features with a weight, now or at the proximal point."""
    return ((proximal != 0).any(0) | (weight != 0).any(0)).nonzero()[:, 0]


def search(problem: Problem, point: Evaluation, direction: Direction, slope_left: float = _LINE_SLOPE) -> tuple[Tensor, Evaluation]:
    """Return the lengths of a step, (C,) if outputs are separate programs, else (1,), and the point there; 0 if none is lower.

    Without kinks of the penalty, the length is the one with the least objective.  Else it is the longest of 1, 1/2, ... 1/128 that
    lowers it, shortened further while that is no worse.  An entry or group on another side of the penalty's kink than both the
    start and the model is set to zero.
    """
    features, penalty, (change, change_bias, proximal) = problem.features, problem.penalty, direction
    moved = features.scores(change, change_bias)  # scores are linear along the direction
    if not penalty.sparse:
        sizes = _exact_lengths(problem, features, (point.weight, point.scores), (change, moved), slope_left)
        weight, bias = point.weight + sizes[:, None] * change, point.bias + sizes * change_bias
        return sizes, problem.evaluate(weight, bias, point.scores + sizes * moved - features.bias_column * bias)
    level = problem.objective_by_output(point.weight, point.scores)
    level = level + 1e-14 * level.abs()
    found, seeking, size = torch.zeros_like(level), torch.ones_like(level, dtype=torch.bool), 1.0
    weight, bias, scores = point.weight, point.bias, point.scores
    for _ in range(_HALVINGS):
        linear = point.weight + size * change
        kept = penalty.same_side(linear, point.weight) | penalty.same_side(linear, proximal)
        there = torch.where(kept, linear, 0.0)
        shift = point.bias + size * change_bias
        seen = point.scores + size * moved
        dropped = there - linear
        if features.shards.broadcast_number(bool((dropped != 0).any())):
            centred = -features.centring(dropped)
            shift = shift + centred
            seen += features.scores(dropped, centred)
        value = problem.objective_by_output(there, seen)
        lower = seeking & (value <= level)
        level, found = torch.where(lower, value, level), torch.where(lower, size, found)
        weight, bias = torch.where(lower[:, None], there, weight), torch.where(lower, shift, bias)
        scores = torch.where(lower, seen, scores)
        seeking = lower | (seeking & (found == 0))
        if not bool(seeking.any()):
            break
        size /= 2
    if not bool(found.any()):
        return found, point
    return found, problem.evaluate(weight, bias, scores - features.bias_column * bias)


def _exact_lengths(
    problem: Problem, features: Features, point: tuple[Tensor, Tensor], step: tuple[Tensor, Tensor], slope_left: float
) -> Tensor:
    """Return the lengths with the least objective, (C,) if outputs are separate programs, else (1,); by safeguarded Newton steps.

    Point and step are both weights (C, P) and scores (n, C).  Scores are linear in the weights: no length costs a product.
    """
    (weight, scores), (change, moved) = point, step
    penalty, separate = problem.penalty, problem.independent_outputs
    size = moved.new_ones(moved.shape[1] if separate else 1)
    low, high = torch.zeros_like(size), torch.full_like(size, torch.inf)
    first: Tensor | None = None

    def slopes(rows: slice) -> Tensor:
        here = scores[rows] + size * moved[rows]
        return moved[rows] * problem.loss.gradient(here, problem.targets[rows])

    def bends(rows: slice) -> Tensor:
        here = scores[rows] + size * moved[rows]
        return moved[rows] * problem.loss.curvature(here, problem.targets[rows]).product(moved[rows])

    def derivative(of_row: Callable[[slice], Tensor], of_weight: Tensor) -> Tensor:
        """Return a derivative of the objective at these lengths, (C,) or (1,), from those of rows and of the penalty (C, P)."""
        parts = features.row_part_of(of_row, moved.shape[1]), problem.strength * (of_weight * change).sum(1)
        return features.shards.sum(*(part if separate else part.sum(0, keepdim=True) for part in parts))

    for _ in range(_LENGTHS):
        there = weight + size[:, None] * change
        slope = derivative(slopes, penalty.gradient(there))
        first = slope.abs() if first is None else first
        high, low = torch.where(slope > 0, size, high), torch.where(slope > 0, low, size)
        if bool((slope.abs() <= slope_left * first).all()):
            break
        bend = derivative(bends, penalty.hessian_product(there, change))
        ahead = size - slope / bend.clamp_min(torch.finfo(bend.dtype).tiny)
        inside = (ahead > low) & (ahead < high)
        size = torch.where(inside, ahead, torch.where(torch.isinf(high), 2 * size, 0.5 * (low + high)))
    return torch.where(size > _LEAST_LENGTH, size, 0.0)
