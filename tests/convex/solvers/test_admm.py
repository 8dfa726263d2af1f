"""Nearly collinear features, on which Newton steps gain little."""

import math

import pytest
import torch

from snn_recon_plugin.convex import SOLVERS, Features, Logistic, Outcome, Problem, Start, solve
from snn_recon_plugin.convex.budget import Budget

from ..helpers import BIASES, SPARSE_PENALTIES, SecondOpinion, collinear_problem, labels, small_problem, spikes

LOSSES = ("cross_entropy", "logistic", "squared", "squared_hinge")


def admm(problem, tol=1e-6, start=None, budget=None):
    return SOLVERS["admm"].solve(problem, start, tol, budget or Budget(problem))


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("penalty", ["l1", pytest.param("group_l1", marks=pytest.mark.slow)])
def test_nearly_collinear_features_are_solved(loss, penalty):
    problem = collinear_problem(loss, penalty)
    solution = admm(problem)
    assert solution.outcome is Outcome.CONVERGED
    second = SecondOpinion(problem, labels(1, 120, 2))
    weight, bias = solution.weight.numpy(), solution.bias.numpy()
    assert solution.certificate.primal == pytest.approx(second.objective(weight, bias), rel=1e-9)
    assert not solution.weight.all()
    other = solve(problem, solver="clarabel", tol=1e-7)
    assert solution.certificate.primal == pytest.approx(other.certificate.primal, abs=2e-6 * problem.zero_loss)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(("penalty", "bias"), [*zip([*SPARSE_PENALTIES, "ridge"], (*BIASES, *BIASES), strict=False)])
def test_a_small_program_with_weighted_samples(loss, penalty, bias):
    problem = small_problem(loss, penalty, bias=bias, row_weights=torch.arange(30.0) % 3)
    solution = admm(problem, tol=1e-7)
    assert solution.outcome is Outcome.CONVERGED
    best = solve(problem, tol=1e-9).certificate
    assert best.dual - 1e-12 <= solution.certificate.primal == pytest.approx(best.primal, abs=2e-7 * problem.zero_loss)
    assert solution.certificate.dual <= best.primal + 1e-12
    assert solution.certificate.primal == pytest.approx(problem.objective(solution.weight, solution.bias), rel=1e-12)


def test_columns_without_information_get_no_weight():
    features = spikes(0, 30, 8)
    features[:, 1], features[:, 6] = 0, 1
    solution = admm(small_problem(features=features), start=Start(torch.ones(3, 8), torch.zeros(3)))
    assert solution.weight.any()
    assert not solution.weight[:, [1, 6]].any()


def test_a_good_start_saves_work():
    problem = collinear_problem()
    best = solve(problem)
    near, far = (admm(problem, 2e-6, start).statistics for start in (Start(best.weight, best.bias), None))
    assert 0 < near.products < far.products


@pytest.mark.parametrize(("limits", "outcome"), [({"seconds": 0.0}, Outcome.TIME_LIMIT), ({"products": 1.0}, Outcome.WORK_LIMIT)])
def test_limits_stop_it_with_a_certified_point(limits, outcome):
    problem = collinear_problem()
    solution = admm(problem, budget=Budget(problem, **limits))
    assert solution.outcome is outcome
    assert len(solution.statistics.trace) <= 2
    assert solution.certificate.gap >= problem.certify(solution.weight, solution.bias, 1e-6).gap - 1e-12
    assert solution.certificate.primal <= problem.zero_loss + 1e-12


def test_its_steps_are_limited():
    problem = collinear_problem(p=20, n=30)
    solution = admm(problem, tol=1e-30)
    assert solution.outcome in (Outcome.ITERATION_LIMIT, Outcome.CONVERGED)
    assert solution.certificate.reached == (solution.outcome is Outcome.CONVERGED)
    assert abs(solution.certificate.relative_gap) < 1e-10


class Broken(Logistic):
    """Its values stop being finite after some calls."""

    name = "broken"
    calls = 0

    def gradient(self, scores, targets):
        self.calls += 1
        return super().gradient(scores, targets) * (1.0 if self.calls < 20 else torch.nan)


def test_iterates_that_stop_being_finite_leave_the_last_good_point():
    problem = Problem(Features(spikes(0, 30, 8), None), labels(0, 30, 3), loss=Broken(), penalty="l1", strength=1e-3)
    solution = admm(problem)
    assert solution.outcome is Outcome.NON_FINITE
    assert torch.isfinite(solution.weight).all()
    assert math.isfinite(solution.certificate.primal)


def test_too_many_features_for_an_eigendecomposition_are_refused():
    problem = Problem(Features(torch.eye(4).repeat(1, 1251)), torch.tensor([0, 1, 0, 1]))
    assert SOLVERS["admm"].supports(problem) == "at most 5000 features"
