"""L-BFGS, with which Newton's method begins on smooth programs."""

import math

import torch

from snn_recon_plugin.convex import Start, solve
from snn_recon_plugin.convex.solvers.lbfgs import lbfgs

from ..helpers import collinear_problem, every_bias, small_problem, smooth_loss


def run(problem, steps=500, tol=1e-9, dtype=torch.float64, deadline=math.inf):
    """From zero: the evaluated point, and the number of products."""
    columns = problem.features.columns(None, dtype)
    start = Start(*(each.to(dtype) for each in problem.zero_point()))
    weight, bias, products = lbfgs(problem, columns, start, steps, tol=tol, deadline=deadline)
    return problem.evaluate(weight, bias), products


@smooth_loss
@every_bias
def test_it_stops_at_the_tolerance(loss, bias):
    """By an estimate that is nearly the certified gap."""
    problem, last = small_problem(loss, "ridge", bias=bias, n=60, p=12), 0
    for tol in (1e-2, 1e-4, 1e-9):
        point, products = run(problem, tol=tol)
        assert point.gap / problem.zero_loss < 2 * tol
        assert tol < 1e-4 or point.gap / problem.zero_loss > 1e-3 * tol
        assert last < products < 600
        last = products
    torch.testing.assert_close(point.weight, solve(problem, tol=1e-12).weight, rtol=1e-3, atol=1e-4)
    single, _ = run(problem, tol=1e-6, dtype=torch.float32)
    assert single.gap / problem.zero_loss < 1e-5


def test_outputs_that_are_separate_programs_do_not_change_each_other():
    problem = small_problem("squared_hinge", "ridge", n=60, p=12)
    together, _ = run(problem, steps=5)
    for k in range(3):
        alone, _ = run(problem.of_outputs(slice(k, k + 1)), steps=5)
        torch.testing.assert_close(alone.weight[0], together.weight[k])


def test_the_number_of_steps_and_the_deadline_are_kept():
    problem = small_problem("squared_hinge", "ridge", n=60, p=12)
    point, products = run(problem, steps=3)
    assert products == 8
    assert point.objective < problem.zero_loss
    still, products = run(problem, deadline=-math.inf)
    assert products == 2
    assert not still.weight.any()


def test_it_leaves_slow_programs_to_newton():
    """On nearly collinear features twenty steps hardly lower the gap."""
    problem = collinear_problem(loss="cross_entropy", penalty="ridge", share=1e-4)
    point, products = run(problem)
    assert products < 300
    assert point.gap / problem.zero_loss > 1e-3
    assert solve(problem, tol=1e-9).certificate.reached


def test_the_whole_solve_ends_with_it_where_it_reaches_the_tolerance():
    problem = small_problem("squared", "ridge", n=60, p=12)
    found = solve(problem, tol=1e-3)
    assert (found.outcome.name, found.statistics.iterations) == ("CONVERGED", 1)
    assert found.statistics.products < 60
