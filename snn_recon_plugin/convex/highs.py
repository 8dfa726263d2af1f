"""Hinge with l1 as a linear program, solved by HiGHS through SciPy.  A reference: exact, independent, and dense in memory."""

from __future__ import annotations

import time
from typing import Any

import torch

from ..errors import SolverError
from .margin import Hinge
from .penalties import L1
from .problem import Problem
from .solution import Outcome, Solution, TracePoint

__all__ = ["solve_highs"]


def solve_highs(problem: Problem, *, tol: float = 1e-6, time_limit: float | None = None, **settings: Any) -> Solution:
    """Solve ``min sum_i w_i s_i + strength (W+ + W-)  s.t.  s_i >= 1 - y_i z_i, s, W+, W- >= 0`` output by output.

    Outputs share neither a constraint nor a norm, so each is a separate program.  The certificate uses the backend's own dual
    values, made feasible by ``Problem.lower_bound``.

    Args:
        problem: the program; hinge with l1.
        tol: relative duality gap to certify.
        time_limit: seconds given to HiGHS, an output.
        **settings: passed to HiGHS.

    Raises:
        SolverError: another loss or penalty, or HiGHS found no optimum.
    """
    import importlib

    import numpy as np

    linprog: Any = importlib.import_module("scipy.optimize").linprog  # SciPy ships no types

    if not (isinstance(problem.loss, Hinge) and isinstance(problem.penalty, L1)):
        raise SolverError(
            f"solver='highs' with {problem.loss.name} and {problem.penalty.name}",
            "a linear program: loss='hinge' with penalty='l1'",
            "pass solver='native' or 'clarabel'",
        )
    began = time.perf_counter()
    design = problem.design
    features, column = design.features.double().cpu().numpy(), design.bias_column.cpu().numpy()[:, None]
    rows, count = features.shape
    # Costs in units of a sample, not of the mean: HiGHS's tolerances are absolute.
    costs = rows * np.concatenate([np.full(2 * count, problem.strength), [0.0], design.row_weights.cpu().numpy()])
    limits = [(0, None)] * (2 * count) + [(None, None) if design.has_bias else (0, 0)] + [(0, None)] * rows
    options = {**({} if time_limit is None else {"time_limit": time_limit}), **settings}
    weight, bias = problem.zero_point()
    dual, steps = torch.zeros(rows, problem.num_outputs, dtype=torch.float64, device=design.device), 0
    for k in range(problem.num_outputs):
        sign = problem.targets[:, k : k + 1].cpu().numpy()
        matrix = np.hstack([-sign * features, sign * features, -sign * column, -np.eye(rows)])
        found = linprog(costs, A_ub=matrix, b_ub=-np.ones(rows), bounds=limits, method="highs", options=options)
        if found.x is None:
            raise SolverError(f"HiGHS ended with {found.message!r}", "an optimal point", "use solver='native'")
        weight[k] = torch.as_tensor(found.x[:count] - found.x[count : 2 * count])
        bias[k] = float(found.x[2 * count])
        # A marginal is the change of the optimum per unit of the right-hand side: minus the multiplier of the margin.
        dual[:, k] = torch.as_tensor(found.ineqlin.marginals / rows * sign[:, 0])
        steps += int(found.nit)
    weights = design.row_weights[:, None]
    dual = torch.where(weights > 0, dual / weights.clamp_min(torch.finfo(torch.float64).tiny), 0.0)
    primal, weight, bias = problem.primal(weight, bias)
    lower = max(problem.evaluate(weight, bias).dual, problem.lower_bound(dual, weight, bias))
    certificate = problem.certificate(primal, lower, tol)
    seconds = time.perf_counter() - began
    active = int((problem.penalty.neuron_sizes(weight) > 0).sum())
    outcome = Outcome.CONVERGED if certificate.reached else Outcome.BACKEND
    trace = (TracePoint(seconds, primal, certificate.relative_gap, active),)
    return Solution(weight, bias, certificate, outcome, "highs", steps, seconds, trace)
