"""Entry point of all solvers, and the rule by which "auto" chooses among them."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..errors import OptionError
from .checks import check_name, checked_bound, positive_number
from .problem import Problem
from .solvers.cvxpy import Cvxpy
from .solvers.newton import Newton
from .solvers.solver import Budget, OnPoint, Outcome, Solution, Solver, Start

_ALL: tuple[Solver, ...] = (Newton(), Cvxpy("clarabel"), Cvxpy("scs"))
SOLVERS: dict[str, Solver] = {solver.name: solver for solver in _ALL}
SOLVER_NAMES: tuple[str, ...] = ("auto", *SOLVERS)

_RATIO = 10.0  # between neighbouring strengths on the way down to a flat loss; a ratio of 4 took 1.5 times as many steps
_ACCURACY = 1e-4  # relative gap of such an intermediate solution, over its share of the critical strength


def solve(
    problem: Problem,
    *,
    solver: str = "auto",
    tol: float = 1e-6,
    start: tuple[Tensor, Tensor] | Start | None = None,
    time_limit: float = math.inf,
    max_products: float = math.inf,
    progress: OnPoint | None = None,
) -> Solution:
    """Solve a readout program, and certify the point.

    Args:
        problem: the program.
        solver: "auto" (default), "newton", or of other packages "clarabel" (which "auto" takes for the hinge) and "scs".
        tol: relative duality gap to reach, positive; relative to the loss at zero weights; default 1e-6.
        start: (W, b), of shapes (C, P) and (C,), or Start to begin from; default zero.  Solvers of other packages ignore it.
        time_limit: seconds; default none.
        max_products: bound on the work, the same on every machine, in products of all features with the weights of all outputs;
            default none.  The iteration that reaches it is the last one.  Solvers of other packages ignore it.
        progress: called with every certified point.

    Returns:
        Weight (C, P) and bias (C,) in float64, their certificate, and the reason for stopping.

    Raises:
        OptionError: a solver that is unknown or does not support the problem; a number out of range; a start of another shape.
        SolverError: another package's solver failed.

    Example:
        >>> import torch
        >>> from snn_recon_plugin.convex import Features, Problem, solve
        >>> matrix, labels = torch.tensor([[0.0, 1.0], [1.0, 1.0], [1.0, 0.0], [0.0, 0.0]]), torch.tensor([0, 1, 1, 0])
        >>> solution = solve(Problem(Features(matrix), labels, penalty="l1", strength=0.1))
        >>> solution.outcome.name, solution.certificate.reached
        ('CONVERGED', True)
        >>> bool(solution.weight[:, 1].any())  # the second feature says nothing of the label
        False
    """
    check_solver(solver)
    begin = None if start is None else Start(*start)
    if begin is not None:
        fix = "pass the solution of a program with as many outputs and features, or start=None"
        weight, bias = problem.checked_point(begin.weight, begin.bias, "a start with ", fix)
        # A copy, since the start may also be the solution, and its owner may change it.
        begin = begin._replace(weight=weight.clone(), bias=bias.clone())
    tol = positive_number("tol", tol, "pass tol=1e-6")
    budget = Budget(problem, checked_bound("max_products", max_products), checked_bound("time_limit", time_limit, may_be_zero=True))
    with _without_autocast(problem.features.device.type):
        if solver == "auto":
            return _solve_auto(problem, begin, tol, budget, progress)
        return _supporting(solver, problem).solve(problem, begin, tol, budget, progress)


def check_solver(name: object) -> None:
    """Refuse an unknown solver by an OptionError with the name to type."""
    check_name("solver", name, SOLVER_NAMES, "auto")


def _without_autocast(device: str) -> AbstractContextManager[Any]:
    """Return a context without autocast, which would round single products to half precision."""
    return torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext()


def _supporting(name: str, problem: Problem) -> Solver:
    """Return a solver, or raise an OptionError that names others if it does not support the problem."""
    needed = SOLVERS[name].supports(problem)
    if needed is None:
        return SOLVERS[name]
    others = [other for other, solver in SOLVERS.items() if solver.supports(problem) is None]
    spread = "" if problem.features.is_whole else ", with rows spread over processes"
    found = f"solver={name!r} for loss {problem.loss.name!r} and penalty {problem.penalty.name!r}{spread}"
    fix = f"pass solver='auto', or one of {others}" if others else "pass a smooth loss, or another penalty"
    raise OptionError(found, needed, fix)


def _solve_auto(problem: Problem, start: Start | None, tol: float, budget: Budget, on_point: OnPoint | None) -> Solution:
    """Solve, and state the reason for the solver; where steps gain little, larger strengths find another start."""
    if not problem.loss.smooth:
        return _explained(_supporting("clarabel", problem).solve(problem, start, tol, budget, on_point), "the loss has kinks")
    reason = "the loss is smooth"
    first = Newton(patient=False).solve(problem, start, tol, budget, on_point)
    if first.outcome is not Outcome.SLOW:
        return _explained(first, reason)
    reason += "; it began again from larger strengths, as steps gained little"
    # The first solve's lower bound holds for every start of the same program.
    start = (_solve_larger_strengths(problem, budget) or first.as_start())._replace(dual=first.certificate.dual)
    last = Newton().solve(problem, start, tol, budget, on_point).after(first)
    if last.certificate.primal > first.certificate.primal:  # a bound on work may end the way from larger strengths early
        last = _with_point_of(first, last, problem)
    return _explained(last, reason)


def _with_point_of(first: Solution, last: Solution, problem: Problem) -> Solution:
    """Return the last solution with the first one's point, which ends the trace."""
    certificate, log = problem.certificate(first.certificate.primal, last.certificate.dual, last.certificate.tol), last.statistics
    seen = replace(first.statistics.trace[-1], seconds=log.seconds, relative_gap=certificate.relative_gap)
    outcome = Outcome.CONVERGED if certificate.reached else last.outcome
    return Solution(first.weight, first.bias, certificate, outcome, replace(log, trace=(*log.trace, seen)))


def _solve_larger_strengths(problem: Problem, budget: Budget) -> Start | None:
    """Return the solution for the last strength above the program's; None if there is no such strength.

    The squared hinge and similar losses, and their curvature, are zero once every sample has its margin.  On separable data a first
    step from zero at a small strength lands there; at larger strengths samples still lack their margins.
    """
    top = problem.critical_strength()
    found: Start | None = None
    for k in range(1, math.ceil(math.log(max(top / problem.strength, 1.0), _RATIO) - 1e-9)):
        share = _RATIO**-k
        solution = Newton().solve(problem.with_strength(share * top), found, _ACCURACY * share, budget)
        found = Start(solution.weight, solution.bias)
        if not budget.left or budget.late:
            break
    return found


def _explained(solution: Solution, reason: str) -> Solution:
    return replace(solution, statistics=replace(solution.statistics, reason=reason))
