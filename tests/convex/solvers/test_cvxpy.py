"""Solvers of CVXPY, certified by this package; and the package's own solvers against one of them."""

import math
import random as chance

import cvxpy
import pytest
import torch

from snn_recon_plugin.convex import Features, Outcome, Problem, solve
from snn_recon_plugin.convex.solvers.cvxpy import Cvxpy
from snn_recon_plugin.convex.solvers.solver import Budget
from snn_recon_plugin.errors import SolverError

from ...versions import OLD_CLARABEL
from ..helpers import BIASES, PRODUCT, TWO_OUTPUTS, bias_column, every_bias, labels, random, small_problem, spikes

backends = pytest.mark.parametrize("backend", ["clarabel", "scs"])


def through_cvxpy(problem, backend, tol=1e-6):
    return Cvxpy(backend).solve(problem, None, tol, Budget(problem))


QUICK = (*range(12), 22, 27)  # of 50 random programs, with another pair each; the last two need more accurate stages


@pytest.mark.filterwarnings("ignore:Solution may be inaccurate")  # of the stage before the last; the objectives are compared
@pytest.mark.parametrize("seed", [pytest.param(k, marks=[] if k in QUICK else [pytest.mark.slow]) for k in range(50)])
def test_clarabel_finds_the_same_objective(seed):
    """Of a random program: sizes, bias, kind of features, sample weights and strength."""
    draw = chance.Random(seed)
    loss, penalty = PRODUCT[7 * seed % len(PRODUCT)]
    n, p, classes = draw.randint(8, 40), draw.randint(1, 12), draw.randint(2, 4)
    matrix = spikes(seed, n, p) if draw.random() < 0.5 else random(seed, n, p)
    weights = 0.5 + torch.rand(n, generator=torch.Generator().manual_seed(seed)) if draw.random() < 0.5 else None
    features = Features(matrix, bias_column(draw.choice(BIASES), n), weights)
    outputs = 1 if classes == 2 and loss not in TWO_OUTPUTS else classes
    problem = Problem(features, labels(seed, n, classes), loss=loss, penalty=penalty, num_outputs=outputs)
    problem = problem.with_strength(max(draw.uniform(0.05, 0.9) * problem.critical_strength(), 1e-6))
    solution = solve(problem, tol=2e-8 if loss == "hinge" else 1e-9)
    assert solution.outcome is Outcome.CONVERGED
    assert solution.certificate.gap > -1e-12 * problem.zero_loss
    other = solve(problem, solver="clarabel", tol=1e-7)
    assert solution.certificate.primal == pytest.approx(other.certificate.primal, rel=1e-7)
    assert solution.certificate.dual <= other.certificate.primal + 1e-12
    above = 1e-9 if OLD_CLARABEL else 1e-10  # at a point that Clarabel may leave inaccurate
    assert other.certificate.dual <= solution.certificate.primal + above


@backends
@every_bias
def test_the_bias_returned_is_for_the_features_as_given(backend, bias):
    features = spikes(0, 30, 8).double() + 4  # far from centred
    problem = small_problem("squared", "ridge", bias=bias, features=features)
    solution = through_cvxpy(problem, backend)
    assert problem.objective(solution.weight, solution.bias) == pytest.approx(solve(problem, tol=1e-9).certificate.primal, rel=1e-6)
    if bias == "none":
        assert not solution.bias.any()


@backends
@pytest.mark.parametrize(("status", "found"), [(None, "out of luck"), ("infeasible", "status 'infeasible'")])
def test_a_backend_that_ends_without_a_point(backend, status, found, monkeypatch):
    def end(self, **options):
        if status is None:
            raise cvxpy.error.SolverError("out of luck")

    monkeypatch.setattr(cvxpy.Problem, "solve", end)
    monkeypatch.setattr(cvxpy.Problem, "status", status)
    with pytest.raises(SolverError, match=found) as caught:
        solve(small_problem(), solver=backend)
    assert backend in caught.value.found
    assert "auto" in caught.value.fix


def test_a_backend_that_is_not_installed():
    with pytest.raises(SolverError, match="nope"):
        through_cvxpy(small_problem(), "nope")


@pytest.mark.parametrize(("backend", "name"), [("scs", "time_limit_secs"), ("clarabel", "time_limit")])
def test_the_backend_gets_the_time_limit(backend, name, monkeypatch):
    seen, original = [], cvxpy.Problem.solve

    def record(self, **options):
        seen.append(options)
        return original(self, **options)

    monkeypatch.setattr(cvxpy.Problem, "solve", record)
    for limit in (60.0, math.inf):
        solve(small_problem("squared"), solver=backend, time_limit=limit)
    assert seen[0][name] == pytest.approx(60.0, abs=1.0)
    assert name not in seen[1]


def test_a_point_that_misses_the_tolerance(monkeypatch):
    original = cvxpy.Problem.solve
    loosened = {"eps_abs": 1e-1, "eps_rel": 1e-1}
    monkeypatch.setattr(cvxpy.Problem, "solve", lambda self, **options: original(self, **{**options, **loosened}))
    loose = solve(small_problem(), solver="scs", tol=1e-9)
    assert loose.outcome is Outcome.BACKEND
    assert not loose.certificate.reached
