"""Hinge with l1 as a linear program, solved by HiGHS through SciPy."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from ...errors import SolverError, installed
from ..margins import Hinge
from ..penalties import L1, GroupL1
from ..problem import Problem
from .solver import Run, Solution, Solver, needs_one_matrix


class Highs(Solver):
    """HiGHS: ``min sum_i w_i s_i + strength (W+ + W-)  s.t.  s_i >= 1 - y_i z_i, s, W+, W- >= 0``, output by output.

    Outputs share neither a constraint nor a norm, so each is a separate program.  The certificate uses HiGHS's own dual values too.
    """

    name = "highs"

    def supports(self, problem: Problem) -> str | None:
        linear = isinstance(problem.penalty, L1) or (isinstance(problem.penalty, GroupL1) and problem.num_outputs == 1)
        if not (isinstance(problem.loss, Hinge) and linear):
            return "a linear program: loss='hinge' with penalty='l1'"
        return needs_one_matrix(problem.features)

    def _minimise(self, run: Run) -> Solution:
        problem, budget = run.problem, run.budget
        features, solve = problem.features, _linear_program(problem)
        weight, bias = problem.zero_point()  # kept by an output that time leaves no point for
        rows, count = features.num_samples, features.num_features
        costs, steps = features.row_weights.cpu().numpy(), 0
        dual = bias.new_zeros(rows, problem.num_outputs)
        for k, signs in enumerate(problem.targets.cpu().numpy().T):
            left = budget.deadline - time.perf_counter()
            found = solve(signs, {} if math.isinf(left) else {"time_limit": max(left, 0.0)})
            if found.x is None and not budget.late:
                raise SolverError(f"HiGHS ended with {found.message!r}", "an optimal point", "use solver='augmented_lagrangian'")
            if found.x is not None:
                weight[k] = torch.from_numpy(found.x[:count] - found.x[count : 2 * count])
                # A marginal is the change of the optimum per unit of the right-hand side: minus the multiplier of the margin.
                shares = np.divide(found.ineqlin.marginals, rows * costs, out=np.zeros(rows), where=costs > 0)
                dual[:, k] = torch.from_numpy(shares * signs)
            steps += int(found.nit)
        point = problem.evaluate(weight, bias)
        return run.finish(point, problem.dual_value(dual, features.adjoint(dual)[0]), steps)


def _linear_program(problem: Problem) -> Callable[[Any, dict[str, Any]], Any]:
    """Return a solver of one output, for labels of +-1 (n,) and options; its variables are W+, W-, b and the slacks s."""
    with installed("scipy", "solver='highs'"):
        from scipy import optimize, sparse

    features = problem.features
    matrix = sparse.csr_matrix(features.matrix.double().cpu().numpy())
    column = sparse.csr_matrix(features.bias_column.cpu().numpy())
    rows, count = matrix.shape
    # Costs in units of a sample, not of the mean: HiGHS's tolerances are absolute.
    costs = rows * np.concatenate([np.full(2 * count, problem.strength), [0.0], features.row_weights.cpu().numpy()])
    free = (None, None) if features.has_bias else (0, 0)
    bounds = [(0, None)] * (2 * count) + [free] + [(0, None)] * rows

    def solve(signs: Any, options: dict[str, Any]) -> Any:
        signed = sparse.diags(signs)
        margins = sparse.hstack([-signed @ matrix, signed @ matrix, -signed @ column, -sparse.identity(rows)], format="csc")
        return optimize.linprog(costs, A_ub=margins, b_ub=-np.ones(rows), bounds=bounds, method="highs", options=options)

    return solve
