"""The contract of solvers, over all of them and all pairs of loss and penalty."""

import math
import time

import numpy as np
import pytest
import torch

from snn_recon_plugin.convex import SOLVERS, Outcome, Start, solve
from snn_recon_plugin.convex.solvers.solver import PRICE, Budget, SolveRecord
from snn_recon_plugin.errors import OptionError

from ..helpers import PRODUCT, SecondOpinion, labels, small_problem

_optima = {}


def bounds(loss, penalty):
    """Lower and upper bound of the optimum, in numpy, from the point of a solver that all others are compared with."""
    if (loss, penalty) not in _optima:
        problem = small_problem(loss, penalty)
        found = solve(problem, solver="clarabel" if loss == "hinge" else "newton", tol=1e-9)
        second, weight, bias = SecondOpinion(problem, labels(0, 30, 3)), found.weight.numpy(), found.bias.numpy()
        upper = second.objective(weight, bias)
        lower = upper - 1e-7 if loss == "hinge" else second.dual(weight, bias)  # a subgradient is rarely a dual point
        assert -1e-12 <= upper - lower <= 2e-7
        _optima[loss, penalty] = lower, upper
    return _optima[loss, penalty]


def test_the_best_bound_is_kept_with_the_best_point():
    problem = small_problem()
    record = SolveRecord("newton", problem, None, 1e-6, Budget(problem), None)
    start = record.begin()
    primal, dual = start.objective - 0.1, start.dual + 0.1
    record.keep(primal, start.weight, start.bias, dual)
    record.keep(primal + 0.05, start.weight, start.bias, dual - 0.05)
    certificate = record.solution(Outcome.STALLED, 1).certificate
    assert (certificate.primal, certificate.dual) == (primal, dual)


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize(("loss", "penalty"), PRODUCT, ids=map("-".join, PRODUCT))
def test_a_solver_solves_its_programs_or_names_another(name, loss, penalty):
    problem = small_problem(loss, penalty)
    needed = SOLVERS[name].supports(problem)
    if needed is None:
        seen = []
        solution = solve(problem, solver=name, progress=seen.append)
        assert tuple(seen) == solution.statistics.trace
        assert np.all(np.diff([point.seconds for point in seen]) >= 0)
        check_solution(problem, solution, name, *bounds(loss, penalty))
        return
    assert needed.split()[0] in ("a", "an", "all", "at", "outputs")  # a noun phrase, which an error can end with
    assert not needed.endswith(".")
    with pytest.raises(OptionError, match=f"solver='{name}' for loss '{loss}'") as caught:
        solve(problem, solver=name)
    assert caught.value.needed == needed
    others = [other for other in SOLVERS if f"'{other}'" in caught.value.fix]
    assert others
    assert all(SOLVERS[other].supports(problem) is None for other in others)


def check_solution(problem, solution, name, lower, upper):
    certificate, statistics = solution.certificate, solution.statistics
    assert solution.outcome is Outcome.CONVERGED
    assert (certificate.tol, certificate.reached) == (1e-6, True)
    assert -1e-12 <= certificate.gap == certificate.primal - certificate.dual
    assert certificate.relative_gap <= 1e-6
    second = SecondOpinion(problem, labels(0, 30, 3))
    assert certificate.primal == pytest.approx(second.objective(solution.weight.numpy(), solution.bias.numpy()), rel=1e-11)
    assert certificate.relative_gap == pytest.approx(certificate.gap / second.zero_loss)
    assert certificate.dual <= upper + 1e-12
    assert lower - 1e-12 <= certificate.primal <= upper + 1e-6 * second.zero_loss
    assert solution.weight.dtype == solution.bias.dtype == torch.float64
    assert (statistics.solver, statistics.reason) == (name, "")
    assert statistics.seconds > 0
    assert statistics.trace[-1].relative_gap == pytest.approx(certificate.relative_gap, abs=1e-12)
    assert statistics.trace[-1].active == int(solution.weight.any(0).sum())


def test_the_optimum_needs_no_step():
    problem = small_problem()
    best = solve(problem, tol=1e-10)
    again = solve(problem, start=best.as_start())
    assert again.statistics.iterations == 0
    assert torch.equal(again.weight, best.weight)
    assert best.as_start() == Start(best.weight, best.bias, best.statistics.step)
    known = solve(problem, start=best.as_start()._replace(dual=best.certificate.dual))
    assert known.certificate.dual >= best.certificate.dual


def test_a_solution_after_another_includes_its_iterations_and_trace():
    problem = small_problem()
    one, two = solve(problem, tol=1e-2), solve(problem, tol=1e-8)
    both = two.after(one)
    assert both.statistics.trace == one.statistics.trace + two.statistics.trace
    assert both.statistics.iterations == one.statistics.iterations + two.statistics.iterations
    assert both.weight is two.weight


# -- the bound on work, which is counted and not timed -----------------------------------------------------------------
KINDS = {
    "ridge": {"penalty": "ridge"},
    "group_l1": {"penalty": "group_l1"},
    "squared hinge": {"loss": "squared_hinge", "penalty": "l1"},
}


def hard(loss="cross_entropy", penalty="group_l1"):
    return small_problem(loss, penalty, n=80, p=30, share=0.01)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("limit", "outcome"), [("max_products", Outcome.WORK_LIMIT), ("time_limit", Outcome.TIME_LIMIT)])
def test_a_bound_that_is_reached_leaves_an_honest_gap(kind, limit, outcome):
    problem = hard(**KINDS[kind])
    solution = solve(problem, tol=1e-10, **{limit: 20 if limit == "max_products" else 0.0})
    assert solution.outcome is outcome
    assert not solution.certificate.reached
    exact = problem.certify(solution.weight, solution.bias, 1e-10)
    assert solution.certificate.primal == pytest.approx(exact.primal, rel=1e-9)
    assert 1e-10 < solution.certificate.relative_gap <= exact.relative_gap + 1e-12
    assert solution.certificate.primal <= problem.zero_loss


@pytest.mark.parametrize("kind", KINDS)
def test_a_solve_ends_soon_after_the_bound(kind):
    problem, options = hard(**KINDS[kind]), {"tol": 1e-7}
    free = solve(problem, **options).statistics.products
    bounded = [solve(problem, max_products=share * free, **options) for share in (0.1, 0.5)]
    # A step that has begun is finished, with its matrices, its line search, and the proximal steps after it.
    assert bounded[0].statistics.products <= 0.1 * free + 40
    assert bounded[1].statistics.products <= 0.5 * free + 40
    assert bounded[1].certificate.primal <= bounded[0].certificate.primal + 1e-12
    assert solve(problem, max_products=2 * free, **options).certificate.reached


def test_the_bound_does_not_depend_on_the_clock(monkeypatch):
    problem = hard()
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
