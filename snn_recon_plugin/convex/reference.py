"""Reference solvers: the same program through CVXPY, by SCS or Clarabel.  Slow, independent, and certified by this package.

CVXPY is imported on first use, not with the package: its import takes longer than small programs take to solve.
"""

from __future__ import annotations

import time
from typing import Any

import torch

from ..errors import SolverError
from .certificate import Evaluation
from .design import Design
from .highs import solve_highs
from .losses import CrossEntropy, Logistic, Squared
from .margin import Hinge, SquaredHinge
from .multi_margin import MultiMargin
from .penalties import L1, GroupL1, Penalty, Ridge
from .problem import Problem
from .solution import Outcome, Solution, TracePoint
from .sums import Elastic

_LEAST = 1e-15  # smallest probability: a dual variable at the edge of its domain has no finite scores

__all__ = ["BACKENDS", "solve_reference"]

BACKENDS: dict[str, str] = {"clarabel": "CLARABEL", "scs": "SCS", "highs": "HIGHS"}


def solve_reference(
    problem: Problem, backend: str, *, tol: float = 1e-6, time_limit: float | None = None, **settings: Any
) -> Solution:
    """Solve the program through CVXPY.

    Args:
        problem: the program; loss and penalty must be from this package.
        backend: "clarabel", "scs", or "highs" (linear programs: hinge with l1).
        tol: relative duality gap to certify; the backend's tolerance is a tenth of it, for a loss with kinks a hundredth.
        time_limit: seconds given to the backend.
        **settings: passed to the backend; they override the defaults.

    Raises:
        SolverError: the backend is not installed, failed, or does not know the loss or the penalty.
    """
    import cvxpy

    if backend == "highs":
        return solve_highs(problem, tol=tol, time_limit=time_limit, **settings)
    began = time.perf_counter()
    scores, weight, bias = _variables(cvxpy, problem)
    loss, constraints = _loss_expression(cvxpy, problem, scores)
    objective = loss + problem.strength * _penalty_expression(cvxpy, problem.penalty, weight)
    options = {**_tolerances(backend, tol, time_limit, problem.loss.smooth), **settings}
    program: Any = cvxpy.Problem(cvxpy.Minimize(objective), constraints)
    try:
        program.solve(solver=BACKENDS[backend], **options)
    except cvxpy.error.SolverError as error:
        raise SolverError(
            f"CVXPY's {backend} failed: {error}", "an optimal point", "use solver='native', or another backend"
        ) from error
    if weight.value is None:
        raise SolverError(
            f"{backend} ended with status {program.status!r}", "an optimal point", "use solver='native', or a larger strength"
        )
    shift = bias.value if problem.design.has_bias else [0.0] * problem.num_outputs
    return _certified(problem, weight.value, shift, backend, tol, program, began)


def _variables(cvxpy: Any, problem: Problem) -> tuple[Any, Any, Any]:
    """Return the scores, an expression of the weights (C, P) and the bias (C,), on centred features."""
    design = problem.design
    weight = cvxpy.Variable((problem.num_outputs, design.num_features))
    bias = cvxpy.Variable(problem.num_outputs)
    centred = _dense(design).cpu().numpy()
    column = design.bias_column.cpu().numpy()[:, None]
    scores = centred @ weight.T
    if design.has_bias:
        scores = scores + column @ cvxpy.reshape(bias, (1, problem.num_outputs), order="C")
    return scores, weight, bias


def _dense(design: Design) -> torch.Tensor:
    return design.features.double() - torch.outer(design.bias_column, design.mean)


def _loss_expression(cvxpy: Any, problem: Problem, scores: Any) -> tuple[Any, list[Any]]:
    """Return the mean loss and its constraints, whose dual values make the certificate."""
    weights = problem.design.row_weights.cpu().numpy()
    targets = problem.targets.cpu().numpy()
    if isinstance(problem.loss, CrossEntropy):
        hot = problem.loss.target(problem.targets, problem.num_outputs).cpu().numpy()
        shown = cvxpy.Variable(scores.shape)
        each = cvxpy.log_sum_exp(shown, axis=1) - cvxpy.sum(cvxpy.multiply(hot, shown), axis=1)
        return weights @ each, [shown == scores]
    if isinstance(problem.loss, Logistic):
        shown = cvxpy.Variable(scores.shape)
        return weights @ cvxpy.sum(cvxpy.logistic(-cvxpy.multiply(targets, shown)), axis=1), [shown == scores]
    if isinstance(problem.loss, Hinge):
        slack = cvxpy.Variable(targets.shape, nonneg=True)
        return weights @ cvxpy.sum(slack, axis=1), [slack >= 1 - cvxpy.multiply(targets, scores)]
    root = weights[:, None] ** 0.5
    if isinstance(problem.loss, MultiMargin):
        return _multi_margin(cvxpy, problem.loss, problem.targets, scores, weights)
    if isinstance(problem.loss, SquaredHinge):
        return 0.5 * cvxpy.sum_squares(cvxpy.multiply(root, cvxpy.pos(1 - cvxpy.multiply(targets, scores)))), []
    if isinstance(problem.loss, Squared):
        return 0.5 * cvxpy.sum_squares(cvxpy.multiply(root, scores - targets)), []
    raise SolverError(f"loss {problem.loss.name!r}", "a loss with a CVXPY expression here", "use solver='native'")


def _multi_margin(cvxpy: Any, loss: MultiMargin, targets: torch.Tensor, scores: Any, weights: Any) -> tuple[Any, list[Any]]:
    """Return the multi-class margin loss with one slack a sample and class; the right class's costs nothing."""
    count = scores.shape[1]
    hot = torch.nn.functional.one_hot(targets, count).double().cpu().numpy()
    right = cvxpy.sum(cvxpy.multiply(hot, scores), axis=1, keepdims=True)
    slack = cvxpy.Variable(hot.shape, nonneg=True)
    margins = [slack >= loss.margin + scores - right @ torch.ones(1, count, dtype=torch.float64).numpy()]
    costs = weights[:, None] * (1 - hot) / count
    if loss.p == 1:
        return cvxpy.sum(cvxpy.multiply(costs, slack)), margins
    return cvxpy.sum_squares(cvxpy.multiply(costs**0.5, slack)), margins


def _penalty_expression(cvxpy: Any, penalty: Penalty, weight: Any) -> Any:
    if isinstance(penalty, GroupL1):
        return cvxpy.sum(cvxpy.norm(weight, 2, axis=0))
    if isinstance(penalty, L1):
        return cvxpy.sum(cvxpy.abs(weight))
    if isinstance(penalty, Ridge):
        return 0.5 * cvxpy.sum_squares(weight)
    if isinstance(penalty, Elastic):
        ridge = 0.5 * penalty.share * cvxpy.sum_squares(weight)
        return _penalty_expression(cvxpy, penalty.base, weight) + ridge
    raise SolverError(f"penalty {penalty.name!r}", "a penalty with a CVXPY expression here", "use solver='native'")


def _tolerances(backend: str, tol: float, time_limit: float | None, smooth: bool) -> dict[str, Any]:
    # For a loss with kinks the backend's dual point misses the optimum by a multiple of its tolerance, for others by far less.
    share = 0.1 if smooth else 0.01
    inner = max(share * tol, 1e-10)
    if backend == "scs":
        options: dict[str, Any] = {"eps_abs": inner, "eps_rel": inner, "max_iters": 1_000_000}
        return options if time_limit is None else {**options, "time_limit_secs": time_limit}
    options = {"tol_gap_abs": inner, "tol_gap_rel": inner, "tol_feas": inner}
    return options if time_limit is None else {**options, "time_limit": time_limit}


def _certified(problem: Problem, weight: Any, bias: Any, backend: str, tol: float, program: Any, began: float) -> Solution:
    """Return this package's certificate of the backend's point, whose bias is for centred features."""
    found = torch.as_tensor(weight, dtype=torch.float64, device=problem.design.device)
    shift = torch.as_tensor(bias, dtype=torch.float64, device=problem.design.device)
    point = problem.evaluate(found, shift - found @ problem.design.mean)
    lower = point.dual
    if program.constraints:
        lower = max(lower, _backends_bound(problem, program, point))
    certificate = problem.certificate(point.objective, lower, tol)
    seconds = time.perf_counter() - began
    active = int((problem.penalty.neuron_sizes(found) > 0).sum())
    trace = (TracePoint(seconds, point.objective, certificate.relative_gap, active),)
    outcome = Outcome.CONVERGED if certificate.reached else Outcome.BACKEND
    steps = int(program.solver_stats.num_iters or 0)
    return Solution(point.weight, point.bias, certificate, outcome, backend, steps, seconds, trace)


def _backends_bound(problem: Problem, program: Any, point: Evaluation) -> float:
    """Return a lower bound from the backend's own dual variables.

    They meet the penalty's constraint to the backend's tolerance.  The residual's dual point must be shrunk as a whole for its
    worst neuron.  It misses the constraint by the square root of the tolerance, since the optimum is flat in the weights.
    """
    multipliers = torch.as_tensor(program.constraints[0].dual_value, dtype=torch.float64, device=problem.design.device)
    weights = problem.design.row_weights[:, None]
    rows = torch.where(weights > 0, multipliers / weights.clamp_min(torch.finfo(torch.float64).tiny), 0.0)
    # The constraint holds the scores themselves, the lack of a margin, or the lack of a pair of classes.
    if isinstance(problem.loss, Hinge):
        rows = -problem.targets * rows
    elif not isinstance(problem.loss, MultiMargin):
        rows = -rows
    if not problem.loss.smooth:
        return problem.lower_bound(rows, point.weight, point.bias)
    scores = _scores_of(problem, rows, point.scores)
    return problem.lower_bound_at(scores)


def _scores_of(problem: Problem, rows: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """Return scores (n, C) whose losses have about the gradients ``rows``, to make a feasible dual point from."""
    if isinstance(problem.loss, CrossEntropy):
        return (problem.loss.target(problem.targets, problem.num_outputs) + rows).clamp_min(_LEAST).log()
    if isinstance(problem.loss, Logistic):
        probabilities = (-problem.targets * rows).clamp(_LEAST, 1 - _LEAST)
        return problem.targets * ((1 - probabilities).log() - probabilities.log())
    if isinstance(problem.loss, MultiMargin):
        lead = scores - scores.gather(1, problem.targets[:, None])
        told = 0.5 * problem.num_outputs * rows - problem.loss.margin
        return torch.where(told > -problem.loss.margin + 1e-9, told, lead).scatter(1, problem.targets[:, None], 0.0)
    return scores
