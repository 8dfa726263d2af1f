import pytest
import torch

from snn_recon_plugin.convex import Features, Problem, solve
from snn_recon_plugin.convex.first_order import accelerate

from ..helpers import PENALTY_NAMES, every_pair, pairs_with_bias, small_problem, spikes

every_penalty = pytest.mark.parametrize("penalty", PENALTY_NAMES)


def run(problem, steps, dtype=torch.float64, start=None, scale=None, index=None):
    weight, bias = problem.zero_point() if start is None else start
    weight = weight if index is None else weight[:, index]
    columns = problem.features.columns(index, dtype)
    result = accelerate(problem, columns, weight.to(dtype), bias.to(dtype), steps, scale=scale, index=index)
    assert result.products >= 2 * steps
    return result.weight, result.bias, result.scale


@pairs_with_bias
def test_many_steps_reach_the_optimum(loss, penalty, bias):
    problem = small_problem(loss, penalty, bias=bias)
    weight, shift, size = run(problem, 300)
    assert problem.objective(weight, shift) == pytest.approx(solve(problem, tol=1e-9).certificate.primal, rel=1e-6)
    assert size > 0
    assert (bias == "none") == (not shift.any())


@every_pair
def test_few_steps_make_progress_in_single_precision(loss, penalty):
    problem = small_problem(loss, penalty)
    zero = problem.evaluate(*problem.zero_point())
    weight, bias, size = run(problem, 40, torch.float32)
    assert weight.dtype == torch.float32
    best = solve(problem, tol=1e-9).certificate.primal
    assert problem.objective(weight, bias) - best < 0.05 * (zero.objective - best)
    further = run(problem, 40, torch.float32, start=(weight, bias), scale=size)
    assert problem.objective(*further[:2]) <= problem.objective(weight, bias) + 1e-6


def test_no_steps_return_the_start():
    problem = small_problem()
    start = solve(problem, tol=1e-3)
    weight, bias, _ = run(problem, 0, start=(start.weight, start.bias))
    torch.testing.assert_close(weight, start.weight)
    torch.testing.assert_close(bias, start.bias)


def test_the_optimum_stays():
    problem = small_problem()
    start = solve(problem, tol=1e-12)
    weight, bias, _ = run(problem, 5, start=(start.weight, start.bias))
    torch.testing.assert_close(weight, start.weight, rtol=1e-4, atol=1e-5)
    assert problem.objective(weight, bias) <= start.certificate.primal + 1e-9


def test_the_step_outlasts_the_precision():
    """Targets that are met but for rounding, where no step passes as a descent."""
    torch.manual_seed(0)
    features = torch.randn(40, 5)
    targets = features.double() @ (1e3 * torch.randn(5, 1, dtype=torch.float64))
    problem = Problem(Features(features), targets, loss="squared", penalty="ridge", strength=1e-12, num_outputs=1)
    columns = problem.features.columns(None, torch.float32)
    first, last = (accelerate(problem, columns, *map(torch.Tensor.float, problem.zero_point()), steps) for steps in (1, 500))
    assert last.scale > 0.1 * first.scale
    assert last.products < 500
    assert problem.objective(last.weight, last.bias) < 1e-9 * problem.objective(*problem.zero_point())


@every_penalty
def test_columns_without_information_stay_at_zero(penalty):
    features = spikes(0, 30, 8)
    features[:, 2] = 0
    features[:, 5] = 1
    weight, _, _ = run(small_problem("cross_entropy", penalty, features=features), 50)
    assert not weight[:, [2, 5]].any()


def test_far_too_long_steps_are_taken_back():
    problem = small_problem()
    weight, bias, size = run(problem, 200, scale=1e6)
    assert size < 1e5
    assert problem.objective(weight, bias) == pytest.approx(solve(problem, tol=1e-9).certificate.primal, rel=1e-5)


@every_penalty
def test_steps_on_some_features_solve_the_program_of_these(penalty):
    problem = small_problem("logistic", penalty)
    index = torch.tensor([6, 1, 3])
    part = small_problem("logistic", penalty, features=problem.features.matrix[:, index], strength=problem.strength)
    weight, bias, _ = run(problem, 300, index=index)
    assert weight.shape == (3, 3)
    assert part.objective(weight, bias) == pytest.approx(solve(part, tol=1e-9).certificate.primal, rel=1e-6)


def test_features_of_very_different_scale_do_not_hold_each_other_back():
    scales = 10.0 ** torch.linspace(-3, 3, 8, dtype=torch.float64)
    plain = small_problem("squared", "ridge")
    scaled = small_problem("squared", "ridge", features=spikes(0, 30, 8) * scales, strength=1e-9)
    free = small_problem("squared", "ridge", strength=1e-9)
    expected = solve(free, tol=1e-10).certificate.primal
    weight, bias, _ = run(scaled, 300)
    assert problem_loss(scaled, weight, bias) == pytest.approx(expected, rel=1e-3)
    assert problem_loss(scaled, weight, bias) < plain.evaluate(*plain.zero_point()).objective


def problem_loss(problem, weight, bias):
    return problem.mean_loss(problem.features.scores(weight, bias))
