"""Contract of a solver, its result, and the work and time that a solve may take.

Work is counted in products with all features, so that a bound on it means the same on every machine.  One product is ``n x P x C``
multiply-adds in float32, and at least 64 a feature, since few outputs wait for the memory.  Float64 counts twice.
"""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum
from typing import NamedTuple

from torch import Tensor

from ..penalties import column_norms
from ..problem import Certificate, Evaluation, Problem

PRICE = 64  # multiply-adds a feature: 40 GB/s from memory against 10 (P = 1000, C = 10: 8 ms a product, 1 core, n = 8000)
EVALUATION = 4  # cost of evaluating a point in products: two passes in float64
_INVERSE = 1.5  # multiply-adds of a Cholesky factor of P features and the inverse from it, over P^3


class Budget:
    """Products that a solve has taken (``done``), their limit, and its deadline, a value of ``time.perf_counter``."""

    def __init__(self, problem: Problem, products: float = math.inf, seconds: float = math.inf) -> None:
        self.shards, self.outputs, self.features = problem.features.shards, problem.num_outputs, problem.features.num_features
        self.rows = self.shards.total_rows(problem.features.num_samples)
        self.limit, self.done, self.began = products, 0.0, time.perf_counter()
        self.deadline = self.began + seconds

    @property
    def late(self) -> bool:
        """True after the deadline, measured by the first process."""
        return bool(self.shards.broadcast_number(time.perf_counter() > self.deadline))

    @property
    def left(self) -> float:
        """Products that may still be taken."""
        return max(0.0, self.limit - self.done)

    def steps(self, most: int, features: int | None = None) -> int:
        """Return how many steps of two products with ``features`` features, by default all, may still be taken: 1 to ``most``."""
        left = self.left if features is None else self.left * self.features / max(1, features)
        return int(min(most, max(1.0, left / 2)))

    def add(self, products: float, features: int | None = None) -> None:
        """Count products with ``features`` features; default all."""
        self.done += products * (1.0 if features is None else features / self.features)

    def add_inverse(self, features: int) -> None:
        """Count a Gram matrix of ``features`` features and its inverse."""
        self.add_work(features**2 * (self.rows + _INVERSE * features))

    def add_work(self, multiply_adds: float) -> None:
        """Count work that is no product with features."""
        self.done += multiply_adds / (float(self.rows) * self.features * max(self.outputs, PRICE))


class Outcome(Enum):
    """Reason why a solver stopped; each value is a sentence that a person can act on.

    Example:
        >>> Outcome.CONVERGED.value
        'The relative gap is at most the tolerance.'
    """

    CONVERGED = "The relative gap is at most the tolerance."
    ITERATION_LIMIT = (
        "The iteration limit came first: loosen tol, raise the strength, or pass solver='clarabel' (nearly collinear features)."
    )
    TIME_LIMIT = "The time limit came first: raise time_limit, or loosen tol."
    WORK_LIMIT = "The bound on work came first: raise it (max_cost, or max_products of solve), or loosen tol."
    STALLED = "Rounding stopped all progress above the tolerance: loosen tol, or scale the features."
    NON_FINITE = "The iterates stopped being finite: scale the features, or raise the strength."
    # Only Newton(patient=False) ends with the next one: solver="auto" then goes on another way.
    SLOW = "Newton steps gain little: use solver='auto', which turns to larger strengths."
    BACKEND = "The backend reports an optimum, but its point misses the tolerance: loosen tol, or use another solver."


@dataclass(frozen=True)
class TracePoint:
    """Certified point during a solve."""

    seconds: float  # wall-clock since the solve began, see ``Budget``
    objective: float  # primal
    relative_gap: float  # certified in float64 at this point
    active: int  # number of hidden neurons with a non-zero outgoing weight


OnPoint = Callable[[TracePoint], None]


class Start(NamedTuple):
    """Point to start from."""

    weight: Tensor  # (C, P)
    bias: Tensor  # (C,)
    step: float | None = None  # ``SolveLog.step`` of a program that differs in its strength alone; None estimates it
    dual: float = -math.inf  # lower bound of this program's optimum, if one is known


@dataclass(frozen=True)
class SolveLog:
    """Course and cost of a solve."""

    solver: str  # name of the solver that found the point
    iterations: int  # of the outer loop
    seconds: float  # wall-clock
    trace: tuple[TracePoint, ...]  # certified points in order; the last one is the solution's
    products: float = 0.0  # work done, in products with all features, see ``Budget``; zero for solvers of other packages
    step: float | None = None  # length of the last proximal steps; None if there were none
    reason: str = ""  # why "auto" chose the solver, and what it did besides


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
        >>> solution = solve(Problem(Features(torch.eye(4)), torch.tensor([0, 1, 1, 0]), strength=0.01))
        >>> solution.weight.shape, solution.bias.shape, solution.statistics.solver
        (torch.Size([2, 4]), torch.Size([2]), 'newton')
    """

    weight: Tensor
    bias: Tensor
    certificate: Certificate
    outcome: Outcome
    statistics: SolveLog

    def as_start(self) -> Start:
        """Return the point as a start of another solve, of this program or of one that differs in its strength."""
        return Start(self.weight, self.bias, self.statistics.step)

    def after(self, earlier: Solution) -> Solution:
        """Return this solution of the same program with an earlier solve's iterations and trace before its own."""
        first, second = earlier.statistics, self.statistics
        whole = replace(second, iterations=first.iterations + second.iterations, trace=first.trace + second.trace)
        return replace(self, statistics=whole)


class SolveRecord:
    """Record of a solve: the best point, a lower bound of the optimum, and the trace."""

    def __init__(
        self, solver: str, problem: Problem, start: Start | None, tol: float, budget: Budget, on_point: OnPoint | None
    ) -> None:
        self.solver, self.problem, self.start, self.tol = solver, problem, start, tol
        self.budget, self.on_point = budget, on_point
        self.best = (math.inf, *problem.zero_point())  # objective, weight and bias
        self.lower = -math.inf
        self.trace: list[TracePoint] = []

    def begin(self) -> Evaluation:
        """Evaluate the start, or zero, as the first point."""
        start = self.start or Start(*self.problem.zero_point())
        point = self.problem.evaluate(start.weight, start.bias)
        self.best, self.lower = (point.objective, point.weight, point.bias), max(start.dual, point.dual)
        return point

    def keep(self, objective: float, weight: Tensor, bias: Tensor, dual: float) -> None:
        """Keep a dual value that is a better bound, and a point that is better than the best."""
        self.lower = max(self.lower, dual)
        if objective < self.best[0]:
            self.best = (objective, weight, bias)

    def add_to_trace(self) -> Outcome | None:
        """Add the best point to the trace, and return the reason to stop there, if there is one."""
        objective, weight, _ = self.best
        relative = (objective - self.lower) / self.problem.zero_loss
        seconds = time.perf_counter() - self.budget.began
        self.trace.append(TracePoint(seconds, objective, relative, int((column_norms(weight) > 0).sum())))
        if self.on_point is not None:
            self.on_point(self.trace[-1])
        if relative <= self.tol:
            return Outcome.CONVERGED
        if not self.budget.left:
            return Outcome.WORK_LIMIT
        return Outcome.TIME_LIMIT if self.budget.late else None

    def solution(self, outcome: Outcome, iterations: int, step: float | None = None) -> Solution:
        """Return the best point, certified."""
        objective, weight, bias = self.best
        certificate = self.problem.certificate(objective, self.lower, self.tol)
        seconds = time.perf_counter() - self.budget.began
        statistics = SolveLog(self.solver, iterations, seconds, tuple(self.trace), self.budget.done, step)
        return Solution(weight, bias, certificate, outcome, statistics)


class Solver(ABC):
    """Algorithm for readout programs."""

    name: str  # the option value

    @abstractmethod
    def supports(self, problem: Problem) -> str | None:
        """Return None if the solver takes the problem, else a noun phrase of what it needs instead."""

    def solve(self, problem: Problem, start: Start | None, tol: float, budget: Budget, on_point: OnPoint | None = None) -> Solution:
        """Solve a supported problem, and return the best certified point; the work done is added to the budget."""
        return self._minimise(SolveRecord(self.name, problem, start, tol, budget, on_point))

    @abstractmethod
    def _minimise(self, record: SolveRecord) -> Solution:
        """Solve, with the start, tolerance, and budget of the record."""
