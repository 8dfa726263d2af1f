"""Entry point of all solvers."""

from __future__ import annotations

import math

from torch import Tensor

from ..errors import OptionError
from .central_path import is_linear_program, solve_linear_program
from .checks import checked_bound, checked_start, checked_time_limit, positive_number
from .problem import Problem
from .reference import BACKENDS, solve_reference
from .smoothing import solve_smoothed
from .solution import Progress, Solution
from .work import work_of

__all__ = ["SOLVERS", "checked_tol", "solve"]

SOLVERS: tuple[str, ...] = ("auto", "native", *BACKENDS)


def solve(
    problem: Problem,
    *,
    solver: str = "auto",
    tol: float = 1e-6,
    start: tuple[Tensor, Tensor] | None = None,
    time_limit: float = math.inf,
    max_products: float = math.inf,
    progress: Progress | None = None,
    step: float | None = None,
) -> Solution:
    """Solve a readout program, and certify the point.

    Args:
        problem: the program.
        solver: "auto" or "native" (this package's own), "clarabel", "scs" or "highs" (through CVXPY; highs for hinge with l1 only).
        tol: relative duality gap to reach, positive; relative to the loss at zero weights.
        start: (W, b) warm start; ignored by the references, and by the native solver's interior-point method for hinge with l1.
        time_limit: seconds.
        max_products: bound on the work, the same on every machine, in products of all features with the weights of all outputs.
            The iteration that reaches it is the last one.  The references ignore it.
        progress: called with every certified point (native only).
        step: ``Solution.step`` of a program that differs in its strength alone, which saves products (native, smooth losses).

    Raises:
        OptionError: unknown solver; tol, step or max_products not positive; time_limit below zero; a start of another shape; a
            reference for a design or rows that only the native solver takes.
        SolverError: a reference backend failed.

    Example:
        >>> import torch
        >>> from snn_recon_plugin.convex import Design, Problem, solve
        >>> features, labels = torch.tensor([[0.0, 1.0], [1.0, 1.0], [1.0, 0.0], [0.0, 0.0]]), torch.tensor([0, 1, 1, 0])
        >>> solution = solve(Problem(Design(features), labels, penalty="l1", strength=0.1))
        >>> solution.outcome.name, solution.certificate.reached
        ('CONVERGED', True)
        >>> bool(solution.weight[:, 1].any())  # the second feature says nothing of the label
        False
    """
    tol = checked_tol(tol)
    time_limit = checked_time_limit(time_limit)
    max_products = checked_bound("max_products", max_products)
    step = None if step is None else positive_number("step", step, "a positive number", "pass step=None")
    checked_solver(solver)
    start = checked_start(start, problem.num_outputs, problem.design.num_features)
    if solver in BACKENDS and problem.design.shards.spread:
        found = f"solver={solver!r} with rows spread over processes"
        raise OptionError(found, "the native solver", "pass solver='auto', or all rows to one process")
    if solver in BACKENDS and not problem.design.shared:
        found = f"solver={solver!r} with output neurons that have separate temporal filters"
        raise OptionError(found, "the native solver, which supports them", "pass solver='auto'")
    if solver in BACKENDS:
        return solve_reference(problem, solver, tol=tol, time_limit=None if math.isinf(time_limit) else time_limit)
    work = work_of(problem, max_products)
    if is_linear_program(problem):
        return solve_linear_program(problem, tol=tol, time_limit=time_limit, progress=progress, work=work)
    return solve_smoothed(problem, tol=tol, start=start, time_limit=time_limit, progress=progress, step=step, work=work)


def checked_solver(solver: str) -> str:
    """Return the name of a known solver, or raise an OptionError that lists them."""
    if solver not in SOLVERS:
        raise OptionError(f"solver={solver!r}", f"one of {list(SOLVERS)}", "pass solver='auto'")
    return solver


def checked_tol(tol: float) -> float:
    """Return a positive finite tolerance, or raise an OptionError."""
    return positive_number("tol", tol, "a positive number", "pass tol=1e-6")
