"""The bound on a solve's work, which is counted and not timed."""

import math
import time

import pytest
import torch

from snn_recon_plugin.convex import Outcome, solve
from snn_recon_plugin.convex.budget import PRICE, Budget

from .helpers import small_problem

KINDS = {
    "ridge": {"penalty": "ridge"},
    "group_l1": {"penalty": "group_l1"},
    "squared hinge": {"loss": "squared_hinge", "penalty": "l1"},
    "smoothed": {"loss": "hinge", "penalty": "group_l1"},
    "linear program": {"loss": "hinge", "penalty": "l1"},
    "fista": {"penalty": "group_l1", "solver": "fista"},
}


def hard(loss="cross_entropy", penalty="group_l1", solver="auto"):
    """A program, and options of a solve."""
    return small_problem(loss, penalty, n=80, p=30, share=0.01), {"solver": solver}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("limit", "outcome"), [("max_products", Outcome.WORK_LIMIT), ("time_limit", Outcome.TIME_LIMIT)])
def test_a_bound_that_is_reached_leaves_an_honest_gap(kind, limit, outcome):
    problem, options = hard(**KINDS[kind])
    solution = solve(problem, tol=1e-10, **options, **{limit: 20 if limit == "max_products" else 0.0})
    assert solution.outcome is outcome
    assert not solution.certificate.reached
    exact = problem.certify(solution.weight, solution.bias, 1e-10)
    assert solution.certificate.primal == pytest.approx(exact.primal, rel=1e-9)
    assert 1e-10 < solution.certificate.relative_gap <= exact.relative_gap + 1e-12
    assert solution.certificate.primal <= problem.zero_loss


@pytest.mark.parametrize("kind", ["ridge", "group_l1", "squared hinge", "fista", pytest.param("smoothed", marks=pytest.mark.slow)])
def test_a_solve_ends_soon_after_the_bound(kind):
    problem, options = hard(**KINDS[kind])
    options["tol"] = 1e-4 if kind == "smoothed" else 1e-7
    free = solve(problem, **options).statistics.products
    bounded = [solve(problem, max_products=share * free, **options) for share in (0.1, 0.5)]
    # A step that has begun is finished, with its matrices, its line search, and the proximal steps after it.
    assert bounded[0].statistics.products <= 0.1 * free + 40
    assert bounded[1].statistics.products <= 0.5 * free + 40
    assert bounded[1].certificate.primal <= bounded[0].certificate.primal + 1e-12
    assert solve(problem, max_products=2 * free, **options).certificate.reached


def test_the_bound_does_not_depend_on_the_clock(monkeypatch):
    problem, _ = hard()
    one = solve(problem, tol=1e-9, max_products=200)
    ticks = iter(range(10**9))
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(ticks)))
    two = solve(problem, tol=1e-9, max_products=200)
    assert torch.equal(one.weight, two.weight)
    assert (one.certificate, one.statistics.products) == (two.certificate, two.statistics.products)


def test_a_product_is_priced_by_the_features_unless_there_are_many_outputs():
    few, many = small_problem(classes=3), small_problem(classes=30)
    many.num_outputs = 4 * PRICE
    budgets = [Budget(problem) for problem in (few, many)]
    for budget in budgets:
        budget.add_inverse(8)
    assert 0 < budgets[0].done == pytest.approx(4 * budgets[1].done)


def test_a_part_of_the_features_counts_by_that_part():
    budget = Budget(small_problem(n=30, p=8), products=10.0)
    budget.add(2)
    budget.add(4, features=2)
    assert (budget.done, budget.left) == (3.0, 7.0)
    assert (budget.steps(100), budget.steps(100, 4), budget.steps(5, 4)) == (3, 7, 5)
    budget.add(7)
    assert (budget.left, budget.steps(100)) == (0.0, 1)


def test_the_deadline():
    problem = small_problem()
    assert [Budget(problem, seconds=seconds).late for seconds in (0.0, 60.0, math.inf)] == [True, False, False]
