"""Solvers of CVXPY, certified by this package; and the package's own solvers against one of them."""

import math
import random as chance
import sys

import cvxpy
import numpy as np
import pytest
import torch
from scipy import optimize

from snn_recon_plugin.convex import Features, Outcome, Problem, solve
from snn_recon_plugin.convex.solvers.cvxpy import Cvxpy
from snn_recon_plugin.convex.solvers.solver import Budget
from snn_recon_plugin.errors import OptionError, SolverError

from ...versions import OLD_CLARABEL
from ..helpers import (
    BIASES,
    PENALTY_NAMES,
    PRODUCT,
    TWO_OUTPUTS,
    SecondOpinion,
    bias_column,
    every_bias,
    labels,
    random,
    small_problem,
    spikes,
)

backends = pytest.mark.parametrize("backend", ["clarabel", "scs"])


def through_cvxpy(problem, backend, tol=1e-6):
    return Cvxpy(backend).solve(problem, None, tol, Budget(problem))


QUICK = range(12)  # of 50 random programs, with another pair each
SMOOTH = [pair for pair in PRODUCT if pair[0] != "hinge"]


@pytest.mark.filterwarnings("ignore:Solution may be inaccurate")  # the objectives are compared
@pytest.mark.parametrize("seed", [pytest.param(k, marks=[] if k in QUICK else [pytest.mark.slow]) for k in range(50)])
def test_clarabel_finds_the_same_objective(seed):
    """Of a random program: sizes, bias, kind of features, sample weights and strength."""
    draw = chance.Random(seed)
    loss, penalty = SMOOTH[7 * seed % len(SMOOTH)]
    n, p, classes = draw.randint(8, 40), draw.randint(1, 12), draw.randint(2, 4)
    matrix = spikes(seed, n, p) if draw.random() < 0.5 else random(seed, n, p)
    weights = 0.5 + torch.rand(n, generator=torch.Generator().manual_seed(seed)) if draw.random() < 0.5 else None
    features = Features(matrix, bias_column(draw.choice(BIASES), n), weights)
    outputs = 1 if classes == 2 and loss not in TWO_OUTPUTS else classes
    problem = Problem(features, labels(seed, n, classes), loss=loss, penalty=penalty, num_outputs=outputs)
    problem = problem.with_strength(max(draw.uniform(0.05, 0.9) * problem.critical_strength(), 1e-6))
    solution = solve(problem, tol=1e-9)
    assert solution.outcome is Outcome.CONVERGED
    assert solution.certificate.gap > -1e-12 * problem.zero_loss
    other = solve(problem, solver="clarabel", tol=1e-7)
    assert solution.certificate.primal == pytest.approx(other.certificate.primal, rel=1e-7)
    assert solution.certificate.dual <= other.certificate.primal + 1e-12
    above = 1e-9 if OLD_CLARABEL else 1e-10  # at a point that Clarabel may leave inaccurate
    assert other.certificate.dual <= solution.certificate.primal + above


@every_bias
@pytest.mark.parametrize("penalty", PENALTY_NAMES)
@pytest.mark.parametrize("strength", [0.5, 0.02, 1e-3])
def test_the_hinge_is_certified_and_has_the_objective_written_out(penalty, bias, strength):
    weights = torch.linspace(0.5, 2, 30) if bias == "vector" else None
    problem = small_problem("hinge", penalty, bias=bias, row_weights=weights, strength=strength)
    found = solve(problem)
    assert (found.outcome, found.statistics.solver) == (Outcome.CONVERGED, "clarabel")
    second = SecondOpinion(problem, labels(0, 30, 3)).objective(found.weight.numpy(), found.bias.numpy())
    assert found.certificate.primal == pytest.approx(second, rel=1e-12)
    assert found.certificate.dual <= through_cvxpy(problem, "scs", 1e-7).certificate.primal + 1e-12


def test_the_hinge_with_l1_is_the_linear_program():
    problem = small_problem("hinge", "l1", classes=2, num_outputs=1)
    signs, rows = problem.targets[:, 0].numpy(), spikes(0, 30, 8).double().numpy()
    # Variables: positive and negative parts of weights and bias, and what each sample lacks.
    margins = signs[:, None] * np.column_stack([rows, -rows, np.ones(30), -np.ones(30)])
    costs = np.concatenate([np.full(16, problem.strength), np.zeros(2), np.full(30, 1 / 30)])
    best = optimize.linprog(costs, A_ub=-np.column_stack([margins, np.eye(30)]), b_ub=-np.ones(30)).fun
    found = solve(problem).certificate
    assert found.dual - 1e-12 <= best <= found.primal + 1e-12


@pytest.mark.parametrize("loss", ["hinge", "squared"])
def test_without_cvxpy_the_message_says_what_to_install(loss, monkeypatch):
    monkeypatch.setitem(sys.modules, "cvxpy", None)
    with pytest.raises(OptionError, match="cvxpy is not installed") as caught:
        solve(small_problem(loss, "ridge"), solver="auto" if loss == "hinge" else "clarabel")
    needed = "cvxpy for " + ("the loss 'hinge', which has kinks" if loss == "hinge" else "solver='clarabel'")
    assert (caught.value.needed, caught.value.fix) == (needed, "pip install cvxpy")


@pytest.mark.parametrize(("backend", "other"), [("auto", "scs"), ("clarabel", "scs"), ("scs", "clarabel")])
def test_a_backend_that_fails_on_a_loss_with_kinks(backend, other, monkeypatch):
    def fail(self, **options):
        raise cvxpy.error.SolverError("not installed")

    monkeypatch.setattr(cvxpy.Problem, "solve", fail)
    with pytest.raises(SolverError, match="not installed") as caught:
        solve(small_problem("hinge"), solver=backend)
    assert caught.value.fix == f"use solver='{other}'"


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
