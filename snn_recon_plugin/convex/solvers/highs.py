"""Hinge with l1 as a linear program, solved by HiGHS through SciPy."""

from __future__ import annotations

import importlib
import math
import time
from typing import Any

import numpy as np
import torch

from ...errors import SolverError
from ..margins import Hinge
from ..penalties import L1, GroupL1
from ..problem import Problem
from .base import Run, Solution, Solver, needs_one_matrix

__all__ = ["Highs"]


class Highs(Solver):
    """HiGHS: ``min sum_i w_i s_i + strength (W+ + W-)  s.t.  s_i >= 1 - y_i z_i, s, W+, W- >= 0``, output by output.

    Outputs share neither a constraint nor a norm, so each is a separate program.  The certificate uses HiGHS's own dual values,
    made feasible by ``Problem.lower_bound``.

    Args:
        settings: options of HiGHS, see ``scipy.optimize.linprog``.
    """

    name = "highs"

    def __init__(self, **settings: Any) -> None:
        self.settings = settings

    def supports(self, problem: Problem) -> str | None:
        """Take the hinge with l1, or with any norm of a single output, on features of one process that all outputs share."""
        linear = isinstance(problem.penalty, L1) or (isinstance(problem.penalty, GroupL1) and problem.num_outputs == 1)
        if not (isinstance(problem.loss, Hinge) and linear):
            return "a linear program: loss='hinge' with penalty='l1'"
        return needs_one_matrix(problem.features)

    def minimise(self, run: Run) -> Solution:
        """Take the steps of a solve.  An output that time leaves no point for keeps weights of zero."""
        problem, budget = run.problem, run.budget
        features, program = problem.features, _Program(problem)
        weight, bias = problem.zero_point()
        dual, steps = torch.zeros(features.num_samples, problem.num_outputs, dtype=torch.float64), 0
        for k in range(problem.num_outputs):
            left = budget.deadline - time.perf_counter()
            options = {**({} if math.isinf(left) else {"time_limit": max(left, 0.0)}), **self.settings}
            found = program.solve(problem.targets[:, k].cpu().numpy(), options)
            if found.x is None and not budget.late:
                raise SolverError(f"HiGHS ended with {found.message!r}", "an optimal point", "use solver='augmented_lagrangian'")
            if found.x is not None:
                count = features.num_features
                weight[k] = torch.as_tensor(found.x[:count] - found.x[count : 2 * count])
                bias[k] = float(found.x[2 * count])
                dual[:, k] = torch.as_tensor(program.dual_rows(found.ineqlin.marginals)) * problem.targets[:, k].cpu()
            steps += int(found.nit)
        point = problem.evaluate(weight, bias)
        return run.finish(point, problem.lower_bound(dual.to(features.device), point.weight, point.bias), steps)


class _Program:
    """Linear program of one output, for any labels; variables W+, W-, b and the slacks s."""

    def __init__(self, problem: Problem) -> None:
        sparse, features = importlib.import_module("scipy.sparse"), problem.features  # SciPy ships no types
        self.linprog: Any = importlib.import_module("scipy.optimize").linprog
        self.sparse = sparse
        self.matrix = sparse.csr_matrix(features.matrix.double().cpu().numpy())
        self.column = sparse.csr_matrix(features.bias_column.cpu().numpy())
        rows, count = self.matrix.shape
        self.weights = features.row_weights.cpu().numpy()
        # Costs in units of a sample, not of the mean: HiGHS's tolerances are absolute.
        self.costs = rows * np.concatenate([np.full(2 * count, problem.strength), [0.0], self.weights])
        free = (None, None) if features.has_bias else (0, 0)
        self.bounds = [(0, None)] * (2 * count) + [free] + [(0, None)] * rows

    def solve(self, signs: Any, options: dict[str, Any]) -> Any:
        """Return SciPy's result for labels of +-1, (n,)."""
        rows = len(signs)
        signed = self.sparse.diags(signs)
        parts = [-signed @ self.matrix, signed @ self.matrix, -signed @ self.column, -self.sparse.identity(rows)]
        matrix = self.sparse.hstack(parts, format="csc")
        return self.linprog(self.costs, A_ub=matrix, b_ub=-np.ones(rows), bounds=self.bounds, method="highs", options=options)

    def dual_rows(self, marginals: Any) -> Any:
        """Return the dual variables times the labels, (n,).

        A marginal is the change of the optimum per unit of the right-hand side: minus the multiplier of the margin.
        """
        rows = len(self.weights)
        return np.divide(marginals, rows * self.weights, out=np.zeros(rows), where=self.weights > 0)
