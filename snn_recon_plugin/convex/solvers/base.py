"""Contract of a solver, and what it returns: a certified point, the reason for stopping, and statistics."""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum
from typing import NamedTuple

from torch import Tensor

from ..budget import Budget
from ..certificate import Certificate
from ..problem import Problem

__all__ = ["Outcome", "Progress", "Solution", "Solver", "Start", "Statistics", "TracePoint", "reason_to_stop", "trace_point"]


class Outcome(Enum):
    """Reason why a solver stopped; each value is a sentence that a person can act on.

    Example:
        >>> Outcome.CONVERGED.value
        'The relative gap is at most the tolerance.'
    """

    CONVERGED = "The relative gap is at most the tolerance."
    ITERATION_LIMIT = "The iteration limit came first: use solver='auto', or loosen tol."
    TIME_LIMIT = "The time limit came first: raise time_limit, or loosen tol."
    WORK_LIMIT = "The bound on work came first: raise it (max_cost, or max_products of solve), or loosen tol."
    STALLED = "Rounding stopped all progress above the tolerance: loosen tol, or scale the features."
    NON_FINITE = "The iterates stopped being finite: scale the features, or raise the strength."
    FLAT = "The loss is flat at this point: start from the solution for a larger strength, as solver='auto' does."
    SLOW = "Newton steps gain little: features are nearly collinear, and solver='auto' continues by ADMM."
    BACKEND = "The backend reports an optimum, but its point misses the tolerance: lower its own tolerances, or use 'auto'."


@dataclass(frozen=True)
class TracePoint:
    """Certified point during a solve.

    Args:
        seconds: wall-clock since the solve began, see ``Budget``.
        objective: primal objective.
        relative_gap: certified in float64 at this point.
        active: number of hidden neurons with a non-zero outgoing weight.
    """

    seconds: float
    objective: float
    relative_gap: float
    active: int


Progress = Callable[[TracePoint], None]


class Start(NamedTuple):
    """Point to start from.

    Args:
        weight: (C, P).
        bias: (C,).
        step: ``Statistics.step`` of a program that differs in its strength alone, which saves products; None estimates it.
        dual: lower bound of the optimum, if one is known.
    """

    weight: Tensor
    bias: Tensor
    step: float | None = None
    dual: float = -math.inf


@dataclass(frozen=True)
class Statistics:
    """How a solve went.

    Args:
        solver: name of the solver that found the point.
        iterations: iterations of the outer loop.
        seconds: wall-clock.
        trace: certified points in order.
        products: work done, in products with all features, see ``Budget``; zero for solvers of other packages.
        step: length of the last proximal steps, for a program that differs in its strength alone; None if there were none.
        reason: why "auto" chose the solver, and what it did besides; empty if the solver was asked for.
    """

    solver: str
    iterations: int
    seconds: float
    trace: tuple[TracePoint, ...]
    products: float = 0.0
    step: float | None = None
    reason: str = ""


@dataclass(frozen=True)
class Solution:
    """Solved program.

    Args:
        weight: (C, P) float64, for features as given.
        bias: (C,) float64.
        certificate: for exactly this point.
        outcome: reason why the solver stopped.
        statistics: solver, iterations, seconds, trace and work.

    Example:
        >>> import torch
        >>> from snn_recon_plugin.convex import Features, Problem, solve
        >>> matrix, labels = torch.eye(4), torch.tensor([0, 1, 1, 0])
        >>> solution = solve(Problem(Features(matrix), labels, strength=0.01))
        >>> solution.weight.shape, solution.bias.shape, solution.statistics.solver
        (torch.Size([2, 4]), torch.Size([2]), 'newton')
    """

    weight: Tensor
    bias: Tensor
    certificate: Certificate
    outcome: Outcome
    statistics: Statistics

    def as_start(self) -> Start:
        """Return the point as a start of another solve of the same program."""
        return Start(self.weight, self.bias, self.statistics.step, self.certificate.dual)

    def after(self, earlier: Solution) -> Solution:
        """Return this solution of the same program with an earlier solve's time and work included."""
        first, second = earlier.statistics, self.statistics
        statistics = replace(
            second,
            iterations=first.iterations + second.iterations,
            seconds=first.seconds + second.seconds,
            trace=first.trace + second.trace,
            products=first.products + second.products,
        )
        return replace(self, statistics=statistics)


def trace_point(problem: Problem, weight: Tensor, objective: float, lower: float, budget: Budget) -> TracePoint:
    """Return the trace entry of a point, from its objective and a lower bound of the optimum."""
    relative = (objective - lower) / problem.zero_loss
    return TracePoint(time.perf_counter() - budget.began, objective, relative, problem.active(weight))


def reason_to_stop(relative_gap: float, tol: float, budget: Budget) -> Outcome | None:
    """Return the outcome at a gap, or None if the solver may go on."""
    if relative_gap <= tol:
        return Outcome.CONVERGED
    if budget.spent:
        return Outcome.WORK_LIMIT
    return Outcome.TIME_LIMIT if budget.late else None


class Solver(ABC):
    """Algorithm for readout programs.

    Attributes:
        name: the solver's option value.
    """

    name: str

    @abstractmethod
    def supports(self, problem: Problem) -> str | None:
        """Return None if the solver takes the problem, else a noun phrase of what it needs instead."""

    @abstractmethod
    def solve(
        self, problem: Problem, start: Start | None, tol: float, budget: Budget, progress: Progress | None = None
    ) -> Solution:
        """Solve a supported problem, and return the best certified point, whatever the outcome.

        Args:
            problem: the program.
            start: point to start from; None starts at zero.  Solvers of other packages ignore it.
            tol: relative duality gap at which to stop.
            budget: work and time that may be taken; the work done is added to it.
            progress: called with every certified point.

        Raises:
            SolverError: another package's solver failed.
        """
