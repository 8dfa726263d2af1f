"""Hinge with l1 by the interior-point method, against HiGHS and against the formulas."""

import importlib
import time

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from snn_recon_plugin.convex import Design, Outcome, Problem, central_path, solve
from snn_recon_plugin.convex.central_path import is_linear_program, solve_linear_program

from .helpers import BIASES, OLD_TORCH, SecondOpinion, bias_column, collinear, labels, quick, random, small_problem, spikes

ONE = {"num_outputs": 1}
ROUNDING = 1e-9 if OLD_TORCH else 1e-10


def program(features, share=0.05, row_weights=None):
    design = Design(features, row_weights=row_weights)
    problem = Problem(design, labels(1, len(features), 2), loss="hinge", penalty="l1", **ONE)
    return problem.with_strength(share * problem.critical_strength())


@pytest.mark.slow
@settings(quick, max_examples=20)
@given(
    seed=st.integers(0, 2**16),
    n=st.integers(6, 60),
    p=st.integers(1, 40),
    outputs=st.integers(1, 3),
    bias=st.sampled_from(BIASES),
    share=st.floats(1e-3, 0.9),
    binary=st.booleans(),
    weighted=st.booleans(),
)
@example(seed=0, n=6, p=28, outputs=3, bias="vector", share=0.890625, binary=False, weighted=False)
@example(seed=0, n=6, p=14, outputs=1, bias="one", share=0.890625, binary=True, weighted=False)
def test_highs_finds_the_same_objective(seed, n, p, outputs, bias, share, binary, weighted):
    features = spikes(seed, n, p) if binary else random(seed, n, p)
    weights = (torch.arange(n) % 3).double() if weighted else None
    design = Design(features, bias_column(bias, n), weights)
    classes = labels(seed, n, max(outputs, 2))
    problem = Problem(design, classes, loss="hinge", penalty="l1", num_outputs=outputs)
    problem = problem.with_strength(max(share * problem.critical_strength(), 1e-6))
    assert is_linear_program(problem)
    solution = solve_linear_program(problem, tol=1e-7)
    assert solution.outcome is Outcome.CONVERGED
    assert solution.certificate.gap > -ROUNDING
    other = solve(problem, solver="highs")
    assert solution.certificate.primal == pytest.approx(other.certificate.primal, abs=2e-7 * problem.zero_loss)
    assert solution.certificate.dual <= other.certificate.primal + ROUNDING  # multipliers are made feasible at scores of 1e6
    second = SecondOpinion(problem, classes)
    found = second.objective(solution.weight.numpy(), solution.bias.numpy())
    assert solution.certificate.primal == pytest.approx(found, rel=1e-12, abs=1e-15)


@pytest.mark.parametrize("share", [1e-1, 1e-3, 1e-5])
@pytest.mark.parametrize(("n", "p"), [(150, 100), (60, 60)])
def test_features_that_nearly_span_each_other(share, n, p):
    """And rows that come several times: corners where more of them meet than there are features."""
    features = collinear(0, n, p).repeat(3, 1)
    problem = program(features, share=share)
    solution = solve_linear_program(problem)
    assert solution.outcome is Outcome.CONVERGED
    other = solve(problem, solver="highs")
    assert solution.certificate.primal == pytest.approx(other.certificate.primal, abs=2e-6)
    assert (solution.weight != 0).sum() <= 1.2 * (other.weight.abs() > 1e-12).sum() + 2


def test_weights_that_the_program_does_not_need_are_zero():
    problem = program(random(0, 200, 50))
    solution, other = solve_linear_program(problem), solve(problem, solver="highs")
    assert torch.equal(solution.weight != 0, other.weight != 0)
    assert solution.trace[-1].active == int((solution.weight != 0).sum()) < 50


def test_it_is_what_solve_takes_for_such_programs(monkeypatch):
    problem = program(random(0, 40, 10))
    monkeypatch.setattr(importlib.import_module("snn_recon_plugin.convex.solve"), "solve_smoothed", None)
    assert solve(problem).outcome is Outcome.CONVERGED
    assert solve(small_problem("hinge", "group_l1", classes=2, num_outputs=1)).outcome is Outcome.CONVERGED


@pytest.mark.parametrize(
    ("loss", "penalty", "outputs"),
    [
        ("hinge", "ridge", 1),
        ("hinge", "l1+ridge", 1),
        ("hinge", "group_l1", 3),
        ("squared_hinge", "l1", 1),
        ("multi_margin", "l1", 3),
    ],
)
def test_other_programs_are_not_linear(loss, penalty, outputs):
    assert not is_linear_program(small_problem(loss, penalty, num_outputs=outputs, classes=max(outputs, 2)))


def test_large_programs_are_left_to_smoothings(monkeypatch):
    problem = program(random(0, 40, 10))
    monkeypatch.setattr(central_path, "_WORK", 40 * 10**2 - 1)
    assert not is_linear_program(problem)


def test_columns_without_information_and_rows_without_weight():
    features = spikes(0, 60, 8)
    features[:, 1], features[:, 6] = 0, 1
    weights = (torch.arange(60) % 2).double()
    whole = program(features, row_weights=weights)
    found = solve_linear_program(whole)
    assert found.outcome is Outcome.CONVERGED
    assert not found.weight[:, [1, 6]].any()
    rows = torch.arange(1, 60, 2)
    half = Problem(Design(features[rows]), labels(1, 60, 2)[rows], loss="hinge", penalty="l1", strength=whole.strength, **ONE)
    half = solve_linear_program(half)
    assert half.certificate.primal == pytest.approx(found.certificate.primal, abs=2e-6)


def test_features_without_information_leave_only_the_bias():
    problem = Problem(Design(torch.ones(30, 4)), labels(0, 30, 2), loss="hinge", penalty="l1", strength=0.01, **ONE)
    solution = solve_linear_program(problem)
    assert solution.outcome is Outcome.CONVERGED
    assert not solution.weight.any()


def test_a_bias_column_of_zeros_is_no_bias():
    features = random(0, 40, 10)
    found = [
        solve_linear_program(Problem(Design(features, column), labels(1, 40, 2), loss="hinge", penalty="l1", strength=0.01, **ONE))
        for column in (torch.zeros(40), None)
    ]
    assert found[0].outcome is found[1].outcome is Outcome.CONVERGED
    assert torch.equal(found[0].weight, found[1].weight)


def test_one_class_alone_needs_no_weight():
    zeros = torch.zeros(20, dtype=torch.int64)
    problem = Problem(Design(random(0, 20, 5)), zeros, loss="hinge", penalty="l1", strength=1e-3, num_outputs=1)
    solution = solve_linear_program(problem)
    assert solution.outcome is Outcome.CONVERGED
    assert solution.certificate.primal < 1e-6


def test_above_the_critical_strength_all_weights_are_zero():
    problem = program(random(0, 50, 10), share=1.01)
    solution = solve_linear_program(problem)
    assert solution.outcome is Outcome.CONVERGED
    assert solution.certificate.primal == pytest.approx(problem.primal(*problem.zero_point())[0], abs=1e-6)


def test_limits_and_progress():
    problem = program(random(0, 50, 10))
    late = solve_linear_program(problem, time_limit=0.0)
    assert late.outcome is Outcome.TIME_LIMIT
    assert late.iterations == 0
    assert late.certificate.primal <= problem.primal(*problem.zero_point())[0]
    seen = []
    solution = solve_linear_program(problem, progress=seen.append)
    assert tuple(seen) == solution.trace
    impossible = solve_linear_program(problem, tol=1e-30, time_limit=30.0)
    assert impossible.outcome is Outcome.STALLED or impossible.certificate.gap <= 0
    assert impossible.certificate.relative_gap < 1e-8


@pytest.mark.slow
def test_it_is_faster_than_highs():
    """A ratio in one run, with room: on problem D of the benchmarks it is several times as fast."""
    problem = program(collinear(0, 1000, 400, decay=0.98), share=1e-3)
    seconds = {}
    for solver in ("native", "highs"):
        began = time.perf_counter()
        assert solve(problem, solver=solver).certificate.reached
        seconds[solver] = time.perf_counter() - began
    assert seconds["native"] < seconds["highs"]
