"""Escape from flat regions: solutions for larger strengths, followed down to the requested one.

The squared hinge, the squared multi-class margin loss and similar losses are exactly zero once every sample has its margin.  On
separable data a first step from zero at a small strength lands in this region.  The curvature is zero there, and the penalty's
small slope moves nothing.  At larger strengths samples still lack their margins.  Solutions of neighbouring strengths are a few
Newton steps apart.
"""

from __future__ import annotations

import math
import time
from dataclasses import replace
from typing import Protocol

from torch import Tensor

from .certificate import Evaluation
from .problem import Problem
from .solution import Solution
from .work import Work

__all__ = ["Descent", "descend", "is_flat"]

_RATIO = 10.0  # between neighbouring strengths; a ratio of 4 took 1.5 times as many steps
_ACCURACY = 1e-4  # relative gap of an intermediate solution, over its share of the critical strength


class Descent(Protocol):
    """Signature of ``solve_native`` as used here."""

    def __call__(
        self,
        problem: Problem,
        *,
        tol: float,
        start: tuple[Tensor, Tensor] | None,
        max_iterations: int,
        time_limit: float,
        escape: bool,
        work: Work,
    ) -> Solution:
        """Solve one program of the path."""


def is_flat(point: Evaluation) -> bool:
    """Return True if the gradient in all weights is exactly zero, which only losses with a flat region give."""
    return not bool(point.gradient.any())


def descend(problem: Problem, solver: Descent, max_iterations: int, time_limit: float, work: Work) -> Solution | None:
    """Return the solution for the last strength above the program's; None if there is no such strength.

    Args:
        problem: the program.
        solver: solves each program of the path.
        max_iterations: maximum number of iterations of all solves together.
        time_limit: seconds for all solves together.
        work: their cost is added to it, and its limit ends them.

    Returns:
        The solution, with the iterations of all solves.
    """
    began = time.perf_counter()
    top = problem.critical_strength()
    count = math.ceil(math.log(max(top / problem.strength, 1.0), _RATIO) - 1e-9) - 1
    found: Solution | None = None
    iterations = 0
    for k in range(1, count + 1):
        share = _RATIO**-k
        found = solver(
            problem.with_strength(share * top),
            tol=_ACCURACY * share,
            start=None if found is None else (found.weight, found.bias),
            max_iterations=max_iterations - iterations,
            time_limit=time_limit - (time.perf_counter() - began),
            escape=False,
            work=work,
        )
        iterations += found.iterations
        late = iterations >= max_iterations or time.perf_counter() - began > time_limit
        if work.over or problem.design.shards.decided(late):
            break
    if found is None:
        return None
    return replace(found, iterations=iterations)
