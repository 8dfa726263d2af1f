"""Augmented Lagrangian method for losses with kinks: smooth stages, solved by Newton steps and certified for the loss itself.

A stage minimises the loss's smoothing around the last stage's dual point, whose width need not go to zero.  The dual points are all
feasible for the loss itself.
"""

from __future__ import annotations

from torch import Tensor

from ..problem import Problem
from .newton import Newton
from .solver import Outcome, Solution, Solver, SolveRecord, Start

_FIRST_WIDTH = 1.0
_SHRINK = 0.2  # a stage's width over the last stage's: the next solution is a few Newton steps away
_LAST_WIDTH = 1e-2  # of 1e-1, 1e-2 and 1e-3 none was best throughout
_STAGES = 100
_SHARE, _MIN_SHARE = 0.1, 1e-4  # a stage's gap over the loss's own
_PROGRESS = 0.9  # a stage that leaves more than this share of the gap made no progress
# A stage that takes more is too narrow for its start.  Its point and dual point are still used, and the next stage is wider.
_STAGE_ITERATIONS = 40
_WIDEN, _MAX_WIDTH = 3.0, 1e12


class AugmentedLagrangian(Solver):
    """Augmented Lagrangian method; ``iterations`` counts the Newton iterations of all stages."""

    name = "augmented_lagrangian"

    def supports(self, problem: Problem) -> str | None:
        return "a loss with kinks" if problem.loss.smooth else None

    def _minimise(self, record: SolveRecord) -> Solution:
        problem, tol = record.problem, record.tol
        start = None if record.start is None else Start(*record.start[:2])  # a bound of this loss is none of a smoothing's
        record.begin()
        centre: Tensor | None = None
        width, share, iterations = _FIRST_WIDTH, _SHARE, 0
        for stages in range(_STAGES + 1):
            outcome = record.add_to_trace()
            if outcome is not None or stages == _STAGES:
                break
            smooth = problem.with_loss(problem.loss.smoothed(width, centre))
            relative = record.trace[-1].relative_gap
            accuracy = max(share * tol, min(share * relative, 1e-2))
            stage = Newton(_STAGE_ITERATIONS).solve(smooth, start, accuracy, record.budget)
            iterations += stage.statistics.iterations
            start = Start(stage.weight, stage.bias)
            found = smooth.evaluate(stage.weight, stage.bias)
            centre = smooth.loss.gradient(found.scores, problem.targets)
            record.keep(*problem.primal(stage.weight, stage.bias), problem.dual_value(centre, found.gradient))
            if not stage.statistics.iterations and (record.best[0] - record.lower) / problem.zero_loss > _PROGRESS * relative:
                share = max(0.1 * share, _MIN_SHARE)  # the start met the stage's accuracy: later stages need a higher one
            width = max(width * _SHRINK, _LAST_WIDTH) if stage.certificate.reached else min(_WIDEN * width, _MAX_WIDTH)
        return record.solution(outcome or Outcome.STALLED, iterations)
