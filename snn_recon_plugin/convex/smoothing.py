"""Losses with kinks by the method of multipliers: each stage is smooth, solved by Newton steps, and certified for the loss itself.

A stage minimises the loss's smoothing around the last stage's dual point.  The width of the smoothing need not go to zero.  The
dual points converge to the loss's own, and all of them are feasible for it.
"""

from __future__ import annotations

import math
import time

from torch import Tensor

from .native import solve_native
from .problem import Problem
from .solution import Outcome, Progress, Solution, TracePoint
from .work import Work, work_of

__all__ = ["solve_smoothed"]

_FIRST_WIDTH = 1.0
_SHRINK = 0.2  # a stage's width over the last stage's: the next solution is a few Newton steps away
_LAST_WIDTH = 1e-2  # not tuned: of 1e-1, 1e-2 and 1e-3 none was best throughout
_STAGES = 100
_SHARE = 0.1  # a stage's gap over the loss's own
_LEAST_SHARE = 1e-4
_PROGRESS = 0.9  # a stage that leaves more of the gap than this made no progress
# A stage that takes more is too narrow for its start.  Its point and dual point are still used, and the next stage is wider.
# Measured on 60 programs (n = 30 and 300, both losses with kinks, l1 and group_l1, 4 seeds): 3 failed without this, none with it.
_STAGE_ITERATIONS = 40
_WIDEN = 3.0
_WIDEST = 1e12


def solve_smoothed(
    problem: Problem,
    *,
    tol: float = 1e-6,
    start: tuple[Tensor, Tensor] | None = None,
    max_iterations: int = 2000,
    time_limit: float = math.inf,
    progress: Progress | None = None,
    step: float | None = None,
    work: Work | None = None,
) -> Solution:
    """Solve a program, with a smooth loss or one with kinks, to a relative gap of ``tol``; arguments as for ``solve_native``.

    ``iterations`` counts the Newton iterations of all stages.
    """
    if problem.loss.smooth:
        return solve_native(problem, tol=tol, start=start, time_limit=time_limit, progress=progress, step=step, work=work)
    began, work = time.perf_counter(), work or work_of(problem)
    width, trace = _FIRST_WIDTH, list[TracePoint]()
    first = problem.evaluate(*(start if start is not None else problem.zero_point()))
    centre: Tensor | None = None
    best, dual = problem.primal(first.weight, first.bias), first.dual
    outcome = Outcome.STALLED
    iterations = 0
    share = _SHARE
    for stages in range(_STAGES + 1):
        relative = (best[0] - dual) / problem.zero_loss
        active = int((problem.penalty.neuron_sizes(best[1]) > 0).sum())
        trace.append(TracePoint(time.perf_counter() - began, best[0], relative, active))
        if progress is not None:
            progress(trace[-1])
        if relative <= tol:
            outcome = Outcome.CONVERGED
        elif time.perf_counter() - began > time_limit:
            outcome = Outcome.TIME_LIMIT
        elif work.over:
            outcome = Outcome.WORK_LIMIT
        elif iterations >= max_iterations:
            outcome = Outcome.ITERATION_LIMIT
        elif stages < _STAGES:
            smooth = problem.with_loss(problem.loss.smoothed(width, centre))
            stage = solve_native(
                smooth,
                tol=max(share * tol, min(share * relative, 1e-2)),
                start=start,
                max_iterations=min(_STAGE_ITERATIONS, max_iterations - iterations),
                time_limit=time_limit - (time.perf_counter() - began),
                escape=False,
                work=work,
            )
            iterations += stage.iterations
            start = (stage.weight, stage.bias)
            found = smooth.evaluate(*start)
            centre = smooth.loss.gradient(found.scores, problem.targets)
            dual = max(dual, problem.dual_value(centre, found.gradient))
            best = min(best, problem.primal(*start), key=lambda point: point[0])
            if not stage.iterations and (best[0] - dual) / problem.zero_loss > _PROGRESS * relative:
                share = max(0.1 * share, _LEAST_SHARE)  # its start met its tolerance, and always would
            width = max(width * _SHRINK, _LAST_WIDTH) if stage.certificate.reached else min(_WIDEN * width, _WIDEST)
            continue
        break
    certificate = problem.certificate(best[0], dual, tol)
    seconds = time.perf_counter() - began
    return Solution(best[1], best[2], certificate, outcome, "native", iterations, seconds, tuple(trace), work.done)
