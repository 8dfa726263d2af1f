"""The same program through CVXPY, by SCS or Clarabel: slow, independent, and certified by this package."""

from __future__ import annotations

import math
import time
from typing import Any

import torch
from torch import Tensor

from ...errors import SolverError, installed
from ..loss import Loss
from ..penalties import Penalty
from ..problem import Problem
from .solver import Outcome, Solution, Solver, SolveRecord

_LEAST_SECONDS = 1e-3  # SCS takes zero as no limit, and refuses less


class Cvxpy(Solver):
    """Solver of CVXPY, "clarabel" or "scs"."""

    def __init__(self, name: str) -> None:
        self.name = name

    def supports(self, problem: Problem) -> str | None:
        if type(problem.loss).cvxpy_sum is Loss.cvxpy_sum:
            return "a loss with cvxpy_sum"
        if type(problem.penalty).cvxpy_value is Penalty.cvxpy_value:
            return "a penalty with cvxpy_value"
        return None if problem.features.is_whole else "all rows in one process"

    def _minimise(self, record: SolveRecord) -> Solution:
        problem, features = record.problem, record.problem.features
        use = f"solver={self.name!r}" if problem.loss.smooth else f"the loss {problem.loss.name!r}, which has kinks"
        with installed("cvxpy", use):
            import cvxpy  # here, as this takes longer than a small program

        other = "auto" if problem.loss.smooth else "scs" if self.name == "clarabel" else "clarabel"
        weight = cvxpy.Variable((problem.num_outputs, features.num_features))
        bias = cvxpy.Variable((1, problem.num_outputs))
        scores = cvxpy.Variable((features.num_samples, problem.num_outputs))  # its multipliers are the dual rows
        column = features.bias_column.cpu().numpy()
        centred = (features.matrix.double() - features.bias_column @ features.mean).cpu().numpy()
        linear = centred @ weight.T + column @ bias if features.has_bias else centred @ weight.T
        loss = problem.loss.cvxpy_sum(cvxpy, scores, problem.targets, features.row_weights.cpu().numpy())
        objective = loss + problem.strength * problem.penalty.cvxpy_value(cvxpy, weight)
        program = cvxpy.Problem(cvxpy.Minimize(objective), [scores == linear])
        try:
            program.solve(solver=self.name.upper(), **self._tolerances(record))
        except cvxpy.error.SolverError as error:
            raise SolverError(f"CVXPY's {self.name} failed: {error}", "an optimal point", f"use solver={other!r}") from error
        if weight.value is None:
            ended = f"{self.name} ended with status {program.status!r}"
            raise SolverError(ended, "an optimal point", f"use solver={other!r}, or a larger strength")
        found = torch.as_tensor(weight.value, dtype=torch.float64, device=features.device)
        # The evaluation solves for the bias of a smooth loss.  From zero that may fail: far from centred features have a flat loss
        # there.
        guess = torch.as_tensor(bias.value[0] if features.has_bias else [0.0] * problem.num_outputs, device="cpu").to(found)
        point = problem.evaluate(found, guess - features.centring(found))
        bound = _lower_bound(problem, program.constraints[0].dual_value)
        record.best, record.lower = (point.objective, point.weight, point.bias), max(point.dual, bound)
        return record.solution(record.add_to_trace() or Outcome.BACKEND, int(program.solver_stats.num_iters or 0))

    def _tolerances(self, record: SolveRecord) -> dict[str, Any]:
        # For a loss with kinks the backend's dual point misses the optimum by a multiple of its tolerance, for others by far less.
        inner = max((0.1 if record.problem.loss.smooth else 0.01) * record.tol, 1e-10)
        seconds = record.budget.deadline - time.perf_counter()
        option = "time_limit_secs" if self.name == "scs" else "time_limit"
        limit = {} if math.isinf(seconds) else {option: max(seconds, _LEAST_SECONDS)}
        if self.name == "scs":
            return {"eps_abs": inner, "eps_rel": inner, "max_iters": 1_000_000, **limit}
        return {"tol_gap_abs": inner, "tol_gap_rel": inner, "tol_feas": inner, **limit}


def _lower_bound(problem: Problem, multipliers: Any) -> float:
    """Return a bound by the backend's dual variables: the residual's is further off, as the optimum is flat in the weights."""
    values = torch.as_tensor(multipliers, dtype=torch.float64, device=problem.features.device)
    weights = problem.features.row_weights[:, None]
    rows: Tensor = -torch.where(weights > 0, values / weights.clamp_min(torch.finfo(torch.float64).tiny), 0.0)
    return problem.dual_point(rows)[1]
