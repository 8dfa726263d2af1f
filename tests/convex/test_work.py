"""The bound on a solve's work: where it ends, what it says then, and that it is counted, not timed."""

import math
import time

import pytest
import torch

from snn_recon_plugin.convex import Outcome, solve, solve_path
from snn_recon_plugin.convex.work import PRICE, work_of
from snn_recon_plugin.errors import OptionError

from .helpers import labels, small_problem, spikes

KINDS = {
    "ridge": {"penalty": "ridge"},
    "group_l1": {"penalty": "group_l1"},
    "squared hinge": {"loss": "squared_hinge", "penalty": "l1"},
    "smoothed": {"loss": "hinge", "penalty": "group_l1"},
    "linear program": {"loss": "hinge", "penalty": "l1"},
}


def hard(loss="cross_entropy", penalty="group_l1"):
    return small_problem(loss, penalty, n=80, p=30, share=0.01)


@pytest.mark.parametrize("kind", KINDS)
def test_a_bound_that_is_hit_leaves_an_honest_gap(kind):
    problem = hard(**KINDS[kind])
    solution = solve(problem, tol=1e-10, max_products=20)
    assert solution.outcome is Outcome.WORK_LIMIT
    assert not solution.certificate.reached
    exact = problem.certify(solution.weight, solution.bias, 1e-10)
    assert solution.certificate.primal == pytest.approx(exact.primal, rel=1e-9)
    assert 1e-10 < solution.certificate.relative_gap <= exact.relative_gap + 1e-12
    assert solution.certificate.primal <= problem.zero_loss


@pytest.mark.parametrize("kind", ["ridge", "group_l1", "squared hinge", "linear program"])
def test_work_ends_soon_after_the_bound_and_grows_with_it(kind):
    problem = hard(**KINDS[kind])
    free = solve(problem, tol=1e-7).products
    bounded = [solve(problem, tol=1e-7, max_products=share * free) for share in (0.1, 0.5)]
    # A step that has begun is finished: its matrices, its line search, and the proximal steps that repair it.
    assert bounded[0].products <= 0.1 * free + 40
    assert bounded[1].products <= 0.5 * free + 40
    assert bounded[1].certificate.primal <= bounded[0].certificate.primal + 1e-12
    assert solve(problem, tol=1e-7, max_products=2 * free).certificate.reached


def test_splitting_is_not_entered_where_its_eigendecomposition_is_too_much(monkeypatch):
    monkeypatch.setattr("snn_recon_plugin.convex.native.split_steps", None)  # a call would fail
    monkeypatch.setattr("snn_recon_plugin.convex.native._creeps", lambda problem, trace: True)
    problem = hard()
    with pytest.raises(TypeError):
        solve(problem)
    monkeypatch.setattr("snn_recon_plugin.convex.work._EIGH", 1e9)
    assert solve(problem, max_products=1e5).outcome is Outcome.CONVERGED


def test_the_bound_does_not_depend_on_the_clock(monkeypatch):
    problem = hard()
    one = solve(problem, tol=1e-9, max_products=200)
    ticks = iter(range(10**9))
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(ticks)))
    two = solve(problem, tol=1e-9, max_products=200)
    assert torch.equal(one.weight, two.weight)
    assert (one.certificate, one.products) == (two.certificate, two.products)


def test_a_product_is_priced_by_the_features_unless_there_are_many_outputs():
    few, many = (small_problem(n=30, p=8, classes=classes, features=spikes(0, 30, 8)) for classes in (3, 30))
    many.num_outputs = 4 * PRICE
    works = [work_of(problem) for problem in (few, many)]
    for work in works:
        work.add_inverse(8)
    assert works[0].done == pytest.approx(4 * works[1].done)
    assert works[0].done == pytest.approx(8 * 8 * (30 + 1.5 * 8) / (30 * 8 * PRICE))


def test_parts_of_the_features_count_by_their_part():
    work = work_of(small_problem(n=30, p=8), limit=10.0)
    work.add(2)
    work.add(4, features=2)
    assert (work.done, work.left, work.over) == (3.0, 7.0, False)
    assert work.fits(4) == 14.0
    work.add(7)
    assert (work.left, work.over) == (0.0, True)


def test_a_path_ends_where_its_work_does():
    problem, features, targets = small_problem(n=200, p=60), spikes(9, 50, 60).double(), labels(9, 50, 3)
    whole = solve_path(problem, features, targets, patience=math.inf)
    total = sum(point.solution.products for point in whole.points)
    short = solve_path(problem, features, targets, patience=math.inf, max_products=0.5 * total)
    assert 1 <= len(short.points) < len(whole.points)
    assert torch.equal(short.points[0].solution.weight, whole.points[0].solution.weight)


def test_a_path_is_solved_as_far_as_held_out_samples_can_tell():
    problem, features, targets = small_problem(n=200, p=60), spikes(9, 50, 60).double(), labels(9, 50, 3)
    tols = [point.solution.certificate.tol for point in solve_path(problem, features, targets).points]
    assert tols[0] == 1e-4
    assert all(1e-4 <= tol <= 1e-3 for tol in tols)
    assert max(tols) > 1e-4  # fifty samples tell little
    asked = solve_path(problem, features, targets, tol=1e-7)
    assert {point.solution.certificate.tol for point in asked.points} == {1e-7}


@pytest.mark.parametrize("bound", [0, -1.0, math.nan, "10", True])
def test_bad_bounds(bound):
    with pytest.raises(OptionError, match="max_products="):
        solve(small_problem(), max_products=bound)
