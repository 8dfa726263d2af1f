import math
import warnings

import cvxpy
import pytest
import torch

from snn_recon_plugin.convex import Loss, Outcome, Penalty, solve
from snn_recon_plugin.convex.reference import BACKENDS, solve_reference
from snn_recon_plugin.errors import SolverError

from ..helpers import BIASES, KINKED_LOSSES, LOSS_NAMES, PAIRS, random, small_problem, spikes

# HiGHS solves linear programs only: the hinge with l1.
backends = pytest.mark.parametrize("backend", ["clarabel", "scs"])


class _OwnLoss(Loss):
    """A loss that CVXPY was never told of."""

    name = "own"
    bound = 1.0

    def prepare(self, targets, num_outputs):
        return torch.nn.functional.one_hot(targets, num_outputs).double()

    def value(self, scores, targets):
        return (scores - targets).square().sum(1)

    def gradient(self, scores, targets):
        return 2 * (scores - targets)

    def curvature(self, scores, targets):
        raise NotImplementedError

    def conjugate(self, dual, targets):
        return (dual.square() / 4 + dual * targets).sum(1)


class _OwnPenalty(Penalty):
    """A penalty that CVXPY was never told of."""

    name = "own"

    def _unused(self, *args):
        raise NotImplementedError

    value = prox = same_side = gradient = hessian_product = hessian_diagonal = dual_sizes = conjugate = neuron_sizes = _unused


@backends
@pytest.mark.parametrize(("loss", "penalty"), [*PAIRS, *((loss, "group_l1") for loss in KINKED_LOSSES)])
def test_every_loss_and_penalty_is_known(backend, loss, penalty):
    problem = small_problem(loss, penalty)
    solution = solve_reference(problem, backend, tol=1e-5)
    assert solution.statistics.solver == backend
    assert solution.certificate.gap >= -1e-12
    assert solution.certificate.relative_gap < 1e-4
    assert (solution.outcome is Outcome.CONVERGED) == solution.certificate.reached
    assert solution.statistics.iterations >= 0
    assert solution.statistics.seconds > 0
    assert len(solution.statistics.trace) == 1


@pytest.mark.parametrize("share", [0.1, 0.01])
@pytest.mark.parametrize("penalty", ["group_l1", "l1"])
@pytest.mark.parametrize("loss", LOSS_NAMES)
def test_clarabels_own_dual_variables_certify_its_point(loss, penalty, share):
    """The dual point of its residual misses by 1e-5 to 1e-4 where its objective is right to 1e-10."""
    problem = small_problem(loss, penalty, share=share)
    solution = solve(problem, solver="clarabel", tol=1e-6)
    assert solution.outcome is Outcome.CONVERGED
    assert -1e-12 <= solution.certificate.relative_gap <= 1e-6
    # A bound it is: no point that another solver finds lies below.
    assert solution.certificate.dual <= solve(problem, tol=1e-7, time_limit=3.0).certificate.primal + 1e-12


@pytest.mark.parametrize("loss", KINKED_LOSSES)
@pytest.mark.parametrize("bias", BIASES)
def test_any_dual_rows_give_a_bound(loss, bias):
    problem = small_problem(loss, "group_l1", bias=bias)
    best = solve(problem)
    for seed in range(3):
        assert problem.lower_bound(random(seed, 30, 3), random(seed, 3, 8), random(seed, 3)) <= best.certificate.primal + 1e-12
        assert problem.lower_bound_at(random(seed, 30, 3)) <= best.certificate.primal + 1e-12


@backends
@pytest.mark.parametrize("bias", BIASES)
def test_the_bias_returned_is_for_the_features_as_given(backend, bias):
    features = spikes(0, 30, 8).double() + 4  # far from centred
    problem = small_problem("squared", "ridge", bias=bias, features=features)
    solution = solve_reference(problem, backend)
    assert problem.objective(solution.weight, solution.bias) == pytest.approx(solve(problem, tol=1e-9).certificate.primal, rel=1e-6)
    if bias == "none":
        assert not solution.bias.any()


@backends
def test_row_weights(backend):
    problem = small_problem("logistic", "l1", row_weights=torch.arange(30) % 3)
    native = solve(problem, tol=1e-9)
    assert solve_reference(problem, backend).certificate.primal == pytest.approx(native.certificate.primal, rel=1e-6)


@backends
def test_custom_losses_and_penalties_are_refused(backend):
    loss = small_problem(_OwnLoss(), "ridge", strength=0.1)
    with pytest.raises(SolverError, match="loss 'own'") as caught:
        solve_reference(loss, backend)
    assert "native" in caught.value.fix
    penalty = small_problem("squared", _OwnPenalty(), strength=0.1)
    with pytest.raises(SolverError, match="penalty 'own'"):
        solve_reference(penalty, backend)


@backends
def test_a_backend_that_fails(backend, monkeypatch):
    def fail(self, **options):
        raise cvxpy.error.SolverError("out of luck")

    monkeypatch.setattr(cvxpy.Problem, "solve", fail)
    with pytest.raises(SolverError, match="out of luck") as caught:
        solve(small_problem(), solver=backend)
    assert backend in caught.value.found
    assert "native" in caught.value.fix


@backends
def test_a_backend_that_ends_without_a_point(backend, monkeypatch):
    monkeypatch.setattr(cvxpy.Problem, "solve", lambda self, **options: None)
    monkeypatch.setattr(cvxpy.Problem, "status", "infeasible")
    with pytest.raises(SolverError, match="status 'infeasible'"):
        solve(small_problem(), solver=backend)


@backends
def test_a_backend_that_is_not_installed(backend, monkeypatch):
    monkeypatch.setitem(BACKENDS, backend, "NO_SUCH_SOLVER")
    with pytest.raises(SolverError, match=backend):
        solve(small_problem(), solver=backend)


@pytest.mark.parametrize(("backend", "name"), [("scs", "time_limit_secs"), ("clarabel", "time_limit")])
def test_options_given_to_the_backend(backend, name, monkeypatch):
    seen = []
    original = cvxpy.Problem.solve

    def record(self, **options):
        seen.append(options)
        return original(self, **options)

    monkeypatch.setattr(cvxpy.Problem, "solve", record)
    problem = small_problem("squared")
    solve(problem, solver=backend, time_limit=60.0)
    solve(problem, solver=backend, time_limit=math.inf)
    solve_reference(problem, backend, tol=1e-30, verbose=False)
    assert seen[0][name] == 60.0
    assert name not in seen[1]
    assert seen[0]["solver"] == BACKENDS[backend]
    tolerance = "eps_rel" if backend == "scs" else "tol_gap_rel"
    assert seen[0][tolerance] == pytest.approx(1e-7)  # a tenth of what is to be certified
    assert seen[2][tolerance] == 1e-10  # but never below what rounding allows
    assert seen[2]["verbose"] is False


def test_settings_override_what_is_chosen():
    rough = solve_reference(small_problem(), "scs", tol=1e-9, eps_abs=1e-1, eps_rel=1e-1)
    assert rough.outcome is Outcome.BACKEND
    assert not rough.certificate.reached


@backends
def test_a_time_limit_that_is_far_too_short(backend):
    """An honest answer or a clear error; CVXPY may warn that its point is inaccurate."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Solution may be inaccurate", category=UserWarning)
        try:
            solution = solve(small_problem(n=60, p=30), solver=backend, time_limit=1e-9)
        except SolverError:
            return
    assert solution.outcome is Outcome.BACKEND
    assert not solution.certificate.reached


def test_highs_is_for_linear_programs_only():
    with pytest.raises(SolverError, match="highs") as caught:
        solve(small_problem("squared", "l1"), solver="highs")
    assert "hinge" in caught.value.needed


@pytest.mark.parametrize("bias", BIASES)
def test_highs_certifies_by_its_own_dual_values(bias):
    problem = small_problem("hinge", "l1", bias=bias, row_weights=torch.arange(30) % 3)
    solution = solve(problem, solver="highs", tol=1e-8)
    assert solution.outcome is Outcome.CONVERGED
    assert -1e-12 <= solution.certificate.relative_gap <= 1e-8
    other = solve(problem, solver="clarabel", tol=1e-8)
    assert other.certificate.primal == pytest.approx(solution.certificate.primal, rel=1e-6)


def test_highs_that_ends_without_a_point():
    with pytest.raises(SolverError, match="HiGHS ended with"):
        solve(small_problem("hinge", "l1", n=60, p=30), solver="highs", time_limit=0.0)
