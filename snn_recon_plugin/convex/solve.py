"""Entry point of all solvers, and the rule by which "auto" chooses among them."""

from __future__ import annotations

import math
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..errors import OptionError, closest
from .blocks import output_blocks, solve_blocks
from .budget import Budget
from .checks import checked_bound, checked_time_limit, positive_number
from .problem import Problem
from .solvers import SOLVERS, Outcome, Progress, Solution, Solver, Start
from .solvers.newton import MANY_OUTPUTS, Newton
from .solvers.solver import Run

SOLVER_NAMES: tuple[str, ...] = ("auto", *SOLVERS)
_REPLACED = {"admm": "pass solver='auto', or 'clarabel' if features are nearly collinear"}  # solvers of earlier versions

_LINEAR_WORK = 1e9  # n P C up to which HiGHS solves a linear program
# Trials of the next two: docs/evidence/decisions.md.
_PART, _WHOLE = 6, 18  # rows over features of a part to start on, and from which on there are enough for that
_LEAST_FEATURES = 200  # counted, so that parts of few features have rows enough
_PART_ACCURACY = 1e-3  # relative gap on the part: its optimum differs from that of all rows by more
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
    progress: Progress | None = None,
) -> Solution:
    """Solve a readout program, and certify the point.

    Args:
        problem: the program.
        solver: "auto" (default), "newton", "fista", "augmented_lagrangian", or of other packages "highs", "clarabel" and "scs".
        tol: relative duality gap to reach, positive; relative to the loss at zero weights; default 1e-6.
        start: (W, b), of shapes (C, P) and (C,), or Start to begin from; default zero.  Solvers of other packages ignore it.
        time_limit: seconds; default none.
        max_products: bound on the work, the same on every machine, in products of all features with the weights of all outputs;
            default none.  The iteration that reaches it is the last one.  Solvers of other packages ignore it.
        progress: called with every certified point.

    Returns:
        Weight (C, P) and bias (C,) in float64, their certificate, and the reason for stopping.

    Raises:
        OptionError: unknown solver, or one that does not support the problem; tol or max_products not positive; time_limit below
            zero; a start of another shape.
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
    budget = Budget(problem, checked_bound("max_products", max_products), checked_time_limit(time_limit))

    def solve_one(problem: Problem, start: Start | None, budget: Budget, progress: Progress | None = None) -> Solution:
        if solver == "auto":
            return _solve_auto(problem, start, tol, budget, progress)
        return _supporting(solver, problem).solve(problem, start, tol, budget, progress)

    blocks = output_blocks(problem)
    with _without_autocast(problem.features.device.type):
        if len(blocks) == 1:
            return solve_one(problem, begin, budget, progress)
        return solve_blocks(Run(solver, problem, begin, tol, budget, progress), blocks, solve_one)


def check_solver(name: object) -> None:
    """Refuse an unknown solver by an OptionError with the name to type."""
    if name not in SOLVER_NAMES:
        fix = _REPLACED.get(str(name), f"pass solver={closest(name, SOLVER_NAMES) or 'auto'!r}")
        raise OptionError(f"solver={name!r}", f"one of {list(SOLVER_NAMES)}", fix)


def _without_autocast(device: str) -> AbstractContextManager[Any]:
    """Return a context without autocast, which would round single products to half precision."""
    return torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext()


def _supporting(name: str, problem: Problem) -> Solver:
    """Return a solver, or raise an OptionError that names others if it does not support the problem."""
    needed = SOLVERS[name].supports(problem)
    if needed is None:
        return SOLVERS[name]
    others = [other for other, solver in SOLVERS.items() if solver.supports(problem) is None]
    spread = ", with rows spread over processes" if problem.features.shards.is_distributed else ""
    filtered = "" if problem.features.shared else ", with output neurons that have separate temporal filters"
    found = f"solver={name!r} for loss {problem.loss.name!r} and penalty {problem.penalty.name!r}{spread}{filtered}"
    fix = f"pass solver='auto', or one of {others}" if others else "pass a smooth loss, or another penalty"
    raise OptionError(found, needed, fix)


def _solve_auto(problem: Problem, start: Start | None, tol: float, budget: Budget, progress: Progress | None) -> Solution:
    """Solve by the fastest solver that supports the problem, and state the reason."""
    if SOLVERS["newton"].supports(problem) is None:
        return _solve_by_newton(problem, start, tol, budget, progress)
    size = budget.rows * budget.features * budget.outputs
    if SOLVERS["highs"].supports(problem) is None and size <= _LINEAR_WORK and math.isinf(budget.limit):
        name, reason = "highs", "hinge with l1 is a linear program"
    elif problem.loss.smooth:
        name, reason = "fista", "the penalty has no second derivatives"
    else:
        name, reason = "augmented_lagrangian", "the loss has kinks"
    return _explained(_supporting(name, problem).solve(problem, start, tol, budget, progress), reason)


def _solve_by_newton(problem: Problem, start: Start | None, tol: float, budget: Budget, progress: Progress | None) -> Solution:
    """Solve by Newton's method; where the loss is flat or nearly so, larger strengths find another start, once."""
    sparse, reason = problem.penalty.sparse, "the loss is smooth"
    few = sparse or budget.outputs <= MANY_OUTPUTS  # with more, L-BFGS on all rows is faster than a part first
    if start is None and few and budget.rows > _WHOLE * max(budget.features, _LEAST_FEATURES):
        start = _solve_part(problem, tol, budget)
        reason += "; it began on a part of the rows"
    first = Newton(patient=False).solve(problem, start, tol, budget, progress)
    if first.outcome not in (Outcome.FLAT, Outcome.SLOW):
        return _explained(first, reason)
    reason += "; it began again from larger strengths, as the loss was flat or nearly so"
    # The first solve's lower bound holds for every start of the same program.
    start = (_solve_larger_strengths(problem, budget) or first.as_start())._replace(dual=first.certificate.dual)
    last = Newton().solve(problem, start, tol, budget, progress).after(first)
    if last.certificate.primal > first.certificate.primal:  # a bound on work may end the way from larger strengths early
        last = _with_point_of(first, last, problem)
    return _explained(last, reason)


def _with_point_of(first: Solution, last: Solution, problem: Problem) -> Solution:
    """Return the last solution with the first one's point, which ends the trace."""
    certificate = problem.certificate(first.certificate.primal, last.certificate.dual, last.certificate.tol)
    seen = replace(first.statistics.trace[-1], seconds=last.statistics.seconds, relative_gap=certificate.relative_gap)
    statistics = replace(last.statistics, trace=(*last.statistics.trace, seen))
    outcome = Outcome.CONVERGED if certificate.reached else last.outcome
    return Solution(first.weight, first.bias, certificate, outcome, statistics)


def _solve_part(problem: Problem, tol: float, budget: Budget) -> Start:
    """Return about the solution on a random part of the rows, from which few steps on all rows remain."""
    step = budget.rows // (_PART * max(budget.features, _LEAST_FEATURES))
    part = problem.part(step)
    own = Budget(part, budget.left * step, budget.deadline - time.perf_counter())
    solution = Newton().solve(part, None, max(tol, _PART_ACCURACY), own)
    budget.add(own.done / step)
    return Start(solution.weight, solution.bias, solution.statistics.step)


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
    """Return a solution with the reason for its solver."""
    return replace(solution, statistics=replace(solution.statistics, reason=reason))
