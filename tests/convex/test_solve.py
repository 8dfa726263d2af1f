import math

import numpy as np
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
    assert solution.statistics.solver == ("native" if solver == "auto" else solver)
    assert solution.weight.dtype == solution.bias.dtype == torch.float64
    assert solution.certificate.primal == pytest.approx(problem.objective(solution.weight, solution.bias), rel=1e-12)
    assert solution.statistics.seconds > 0
    assert solution.statistics.trace


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
    assert checked_tol(np.float32(0.5)) == 0.5


@pytest.mark.parametrize("solver", ["native", "clarabel"])
@pytest.mark.parametrize("limit", [math.nan, -1.0, -math.inf, True, "60", None])
def test_bad_time_limits(solver, limit):
    with pytest.raises(OptionError, match="time_limit=") as caught:
        solve(small_problem(), solver=solver, time_limit=limit)
    assert "seconds" in caught.value.needed


@pytest.mark.parametrize(
    ("weight", "bias"), [((3, 7), (3,)), ((2, 8), (2,)), ((8, 3), (3,)), ((3, 8), (2,)), ((3, 8), (3, 1)), ((24,), (3,))]
)
def test_a_start_of_another_shape(weight, bias):
    with pytest.raises(OptionError, match=r"a start with a weight of shape \(") as caught:
        solve(small_problem(), start=(torch.zeros(weight), torch.zeros(bias)))
    assert "(3, 8) and (3,)" in caught.value.needed


def test_progress_start_and_time_limit_reach_the_native_solver():
    problem = small_problem()
    seen = []
    solution = solve(problem, progress=seen.append)
    assert tuple(seen) == solution.statistics.trace
    again = solve(problem, start=(solution.weight, solution.bias))
    assert again.iterations == 0
    assert solve(problem, time_limit=0.0).outcome is Outcome.TIME_LIMIT


@pytest.mark.parametrize("step", [1e-6, 1e6])
def test_however_long_the_first_steps_are_the_optimum_is_the_same(step):
    problem = small_problem(n=60, p=20)
    found = solve(problem, tol=1e-9, step=step)
    assert found.certificate.reached
    assert found.certificate.primal == pytest.approx(solve(problem, tol=1e-9).certificate.primal, rel=1e-7)


@pytest.mark.parametrize("step", [0.0, -1.0, float("nan"), "long"])
def test_steps_that_are_no_lengths_are_refused(step):
    with pytest.raises(OptionError, match="step"):
        solve(small_problem(), step=step)
