"""Collinear features, on which Newton steps creep, and the steps that don't."""

import math
import time

import pytest
import torch

from snn_recon_plugin.convex import Features, Outcome, Problem, native, solve
from snn_recon_plugin.convex.native import solve_native
from snn_recon_plugin.convex.splitting import split_steps
from snn_recon_plugin.convex.work import work_of

from ..helpers import BIASES, SPARSE_PENALTIES, SecondOpinion, bias_column, collinear, labels, small_problem, spikes

LOSSES = ("cross_entropy", "logistic", "squared", "squared_hinge")


def collinear_problem(loss="squared", penalty="l1", share=1e-3, bias="one", classes=2, n=120, p=100):
    design = Features(collinear(0, n, p), bias_column(bias, n))
    problem = Problem(design, labels(1, n, classes), loss=loss, penalty=penalty, num_outputs=classes)
    return problem.with_strength(share * problem.critical_strength())


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("penalty", ["l1", "group_l1"])
def test_features_that_nearly_span_each_other_are_solved(loss, penalty):
    problem = collinear_problem(loss, penalty)
    solution = solve(problem)
    assert solution.outcome is Outcome.CONVERGED
    second = SecondOpinion(problem, labels(1, 120, 2))
    weight, bias = solution.weight.numpy(), solution.bias.numpy()
    assert solution.certificate.primal == pytest.approx(second.objective(weight, bias), rel=1e-9)
    assert not solution.weight.all()
    other = solve(problem, solver="clarabel", tol=1e-7)
    assert solution.certificate.primal == pytest.approx(other.certificate.primal, abs=2e-6 * problem.zero_loss)


def test_newton_steps_alone_creep_on_them(monkeypatch):
    monkeypatch.setattr(native, "_creeps", lambda problem, trace: False)
    solution = solve(collinear_problem())
    assert solution.outcome is Outcome.ITERATION_LIMIT
    assert solution.certificate.relative_gap > 1e-2


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("penalty", [*SPARSE_PENALTIES, "ridge"])
@pytest.mark.parametrize("bias", BIASES)
def test_the_steps_alone_solve_a_small_program(loss, penalty, bias):
    problem = small_problem(loss, penalty, bias=bias, row_weights=torch.arange(30.0) % 3)
    found = split_steps(problem, problem.evaluate(*problem.zero_point()), tol=1e-7)
    assert found.point.objective - found.lower <= 1e-7 * problem.zero_loss
    best = solve(problem, tol=1e-9).certificate
    assert found.point.objective >= best.dual - 1e-12
    assert found.lower <= best.primal + 1e-12
    assert found.point.objective == pytest.approx(problem.objective(found.point.weight, found.point.bias), rel=1e-12)


def test_columns_without_information_get_no_weight_from_the_steps():
    features = spikes(0, 30, 8)
    features[:, 1], features[:, 6] = 0, 1
    problem = small_problem(features=features)
    start = problem.evaluate(torch.ones(3, 8), torch.zeros(3))
    found = split_steps(problem, start, tol=1e-6)
    assert found.point.weight.any()
    assert not found.point.weight[:, [1, 6]].any()


def test_a_start_is_gone_on_from():
    problem = collinear_problem()
    best = solve(problem)
    near, far = (problem.evaluate(*point) for point in ((best.weight, best.bias), problem.zero_point()))
    works = [work_of(problem) for _ in range(2)]
    for work, start in zip(works, (near, far), strict=True):
        split_steps(problem, start, tol=2e-6, work=work)
    assert 0 < works[0].done < works[1].done


def test_the_deadline_and_the_last_step_end_them(monkeypatch):
    problem = collinear_problem()
    start = problem.evaluate(*problem.zero_point())
    works = [work_of(problem, limit) for limit in (math.inf, 1.0, math.inf)]
    late = split_steps(problem, start, tol=1e-6, deadline=time.perf_counter(), work=works[0])
    split_steps(problem, start, tol=1e-6, work=works[1])
    monkeypatch.setattr("snn_recon_plugin.convex.splitting._STEPS", 120)
    short = split_steps(problem, start, tol=1e-12, work=works[2])
    assert works[0].done == works[1].done < works[2].done  # the first look, at 50 steps, and the last step
    assert late.point.objective <= start.objective
    assert short.lower <= short.point.objective


def test_steps_that_are_not_finite_any_more_end(monkeypatch):
    problem = collinear_problem()
    start = problem.evaluate(*problem.zero_point())
    monkeypatch.setattr("snn_recon_plugin.convex.splitting._RELAXATION", 1e6)
    found = split_steps(problem, start, tol=1e-6)
    assert found.point.objective <= start.objective
    assert torch.isfinite(found.point.weight).all()


def test_many_features_are_left_to_newton_steps(monkeypatch):
    problem = collinear_problem()
    monkeypatch.setattr(native, "MOST_FEATURES", 10)
    monkeypatch.setattr(native, "split_steps", None)
    assert solve_native(problem, max_iterations=40).outcome is Outcome.ITERATION_LIMIT
