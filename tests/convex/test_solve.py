import math

import pytest
import torch

from snn_recon_plugin.convex import SOLVERS, Outcome, solve
from snn_recon_plugin.convex.solve import checked_solver, checked_tol
from snn_recon_plugin.errors import OptionError

from .helpers import small_problem


@pytest.mark.parametrize("solver", SOLVERS)
def test_every_solver_answers(solver):
    problem = small_problem("hinge", "l1") if solver == "highs" else small_problem("squared", "group_l1")
    solution = solve(problem, solver=solver, tol=1e-5)
    assert solution.outcome is Outcome.CONVERGED
    assert solution.certificate.reached
    assert solution.certificate.tol == 1e-5
    assert solution.solver == ("native" if solver == "auto" else solver)
    assert solution.weight.dtype == solution.bias.dtype == torch.float64
    assert solution.certificate.primal == pytest.approx(problem.objective(solution.weight, solution.bias), rel=1e-12)
    assert solution.seconds > 0
    assert solution.trace


@pytest.mark.parametrize("solver", ["nope", "", "SCS", None])
def test_unknown_solvers(solver):
    with pytest.raises(OptionError, match="solver=") as caught:
        solve(small_problem(), solver=solver)
    assert all(name in caught.value.needed for name in SOLVERS)
    assert checked_solver("scs") == "scs"


@pytest.mark.parametrize("tol", [0, -1e-6, math.nan, math.inf, True, "1e-6", None])
def test_bad_tolerances(tol):
    with pytest.raises(OptionError, match="tol="):
        solve(small_problem(), tol=tol)
    assert checked_tol(1) == 1.0


def test_progress_start_and_time_limit_reach_the_native_solver():
    problem = small_problem()
    seen = []
    solution = solve(problem, progress=seen.append)
    assert tuple(seen) == solution.trace
    again = solve(problem, start=(solution.weight, solution.bias))
    assert again.iterations == 0
    assert solve(problem, time_limit=0.0).outcome is Outcome.TIME_LIMIT
