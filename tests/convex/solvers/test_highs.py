"""Hinge with l1, a linear program."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize

from snn_recon_plugin.convex import Features, Outcome, Problem, solve
from snn_recon_plugin.errors import OptionError, SolverError

from ..helpers import BIASES, SecondOpinion, bias_column, collinear, labels, quick, random, small_problem, spikes


def program(features, share=0.05, outputs=1, penalty="l1", **options):
    classes = labels(1, len(features), max(outputs, 2))
    problem = Problem(Features(features, **options), classes, loss="hinge", penalty=penalty, num_outputs=outputs)
    return problem.with_strength(share * problem.critical_strength())


@settings(quick, max_examples=5)
@given(
    seed=st.integers(0, 2**16),
    n=st.integers(6, 40),
    p=st.integers(1, 30),
    outputs=st.integers(1, 3),
    bias=st.sampled_from(BIASES),
    share=st.floats(1e-3, 0.9),
    weighted=st.booleans(),
)
def test_the_optimum_is_that_of_the_augmented_lagrangian(seed, n, p, outputs, bias, share, weighted):
    weights = (torch.arange(n) % 3).double() if weighted else None
    classes = labels(seed, n, max(outputs, 2))
    features = Features(spikes(seed, n, p) if seed % 2 else random(seed, n, p), bias_column(bias, n), weights)
    problem = Problem(features, classes, loss="hinge", penalty="l1", num_outputs=outputs)
    problem = problem.with_strength(max(share * problem.critical_strength(), 1e-6))
    solution = solve(problem, tol=1e-7)
    assert solution.statistics.solver == "highs"
    assert solution.outcome is Outcome.CONVERGED
    assert solution.certificate.gap > -1e-10
    found = SecondOpinion(problem, classes).objective(solution.weight.numpy(), solution.bias.numpy())
    assert solution.certificate.primal == pytest.approx(found, rel=1e-12, abs=1e-15)
    other = solve(problem, solver="augmented_lagrangian", tol=1e-5)
    assert solution.certificate.primal <= other.certificate.primal + 1e-7 * problem.zero_loss
    assert solution.certificate.dual <= other.certificate.primal + 1e-10
    assert other.certificate.dual <= solution.certificate.primal + 1e-10


@pytest.mark.parametrize("penalty", ["l1", "group_l1"])
def test_auto_takes_it_for_linear_programs_without_a_bound_on_work(penalty):
    """With one output the norm of a group is an absolute value."""
    problem = program(random(0, 40, 10), penalty=penalty)
    solution, bounded = solve(problem), solve(problem, max_products=1e5)
    assert (solution.outcome, bounded.outcome) == (Outcome.CONVERGED, Outcome.CONVERGED)
    assert (solution.statistics.solver, bounded.statistics.solver) == ("highs", "augmented_lagrangian")
    assert solution.statistics.reason == "hinge with l1 is a linear program"
    assert len(solution.statistics.trace) == 1
    assert solution.statistics.iterations > 0
    assert 0 < bounded.statistics.products < 1e5


@pytest.mark.parametrize(
    ("loss", "penalty", "outputs"),
    [("hinge", "ridge", 1), ("hinge", "group_l1", 3), ("squared_hinge", "l1", 1)],
)
def test_other_programs_are_not_linear(loss, penalty, outputs):
    problem = small_problem(loss, penalty, num_outputs=outputs, classes=max(outputs, 2))
    assert solve(problem, tol=1e-3).statistics.solver != "highs"
    with pytest.raises(OptionError, match="highs") as caught:
        solve(problem, solver="highs")
    assert caught.value.needed == "a linear program: loss='hinge' with penalty='l1'"


@pytest.mark.parametrize("outputs", [1, 3])
def test_the_time_limit_leaves_an_honest_certificate(outputs):
    problem = program(random(0, 200, 100), share=1e-3, outputs=outputs)
    seen = []
    solution = solve(problem, time_limit=0.0, progress=seen.append)
    assert (solution.outcome, solution.statistics.solver) == (Outcome.TIME_LIMIT, "highs")
    assert not solution.certificate.reached
    assert solution.certificate.primal == pytest.approx(problem.objective(solution.weight, solution.bias))
    assert solution.certificate.dual <= solve(problem).certificate.primal + 1e-10
    assert tuple(seen) == solution.statistics.trace


def test_an_end_without_a_point_is_an_error(monkeypatch):
    original = optimize.linprog
    monkeypatch.setattr(optimize, "linprog", lambda *args, options, **others: original(*args, options={"maxiter": 1}, **others))
    with pytest.raises(SolverError, match="HiGHS ended with") as caught:
        solve(program(random(0, 40, 10)), solver="highs")
    assert "augmented_lagrangian" in caught.value.fix


@pytest.mark.parametrize("share", [1e-1, 1e-3])
def test_nearly_collinear_features_and_repeated_rows(share):
    problem = program(collinear(0, 60, 60).repeat(3, 1), share=share)
    solution = solve(problem)
    assert solution.outcome is Outcome.CONVERGED
    other = solve(problem, solver="clarabel", tol=1e-7)
    assert solution.certificate.primal == pytest.approx(other.certificate.primal, abs=2e-6)
