import time

import pytest
import torch

from snn_recon_plugin.convex import Features, Problem, Start, solve
from snn_recon_plugin.convex.solvers.proximal import accelerate

from ..helpers import every_penalty, pairs_with_bias, random, small_problem, spikes


def run(problem, steps, dtype=torch.float64, index=None, **options):
    """From zero: the point with its next step length, and the number of products."""
    weight, bias = problem.zero_point()
    columns, weight = problem.features.columns(index, dtype), weight if index is None else weight[:, index]
    return accelerate(problem, columns, Start(weight.to(dtype), bias.to(dtype)), steps, **options)


def objective(problem, found):
    return problem.objective(found.weight, found.bias)


@pairs_with_bias
def test_many_steps_reach_the_optimum(loss, penalty, bias):
    problem = small_problem(loss, penalty, bias=bias)
    found, products = run(problem, 300)
    assert objective(problem, found) == pytest.approx(solve(problem, tol=1e-9).certificate.primal, rel=1e-6)
    assert found.step > 0
    assert products >= 600
    assert (bias == "none") == (not found.bias.any())


def test_the_step_length_survives_the_end_of_precision():
    """Targets that are met but for rounding, where no step passes as a descent."""
    features = random(0, 40, 5).float()
    targets = features.double() @ random(1, 5, 1, scale=1e3)
    problem = Problem(Features(features), targets, loss="squared", penalty="ridge", strength=1e-12, num_outputs=1)
    (first, _), (last, products) = (run(problem, steps, torch.float32) for steps in (1, 500))
    assert last.step > 0.1 * first.step
    assert products < 500
    assert objective(problem, last) < 1e-9 * problem.objective(*problem.zero_point())


def test_steps_end_once_settled_and_at_the_deadline():
    problem = small_problem()
    assert run(problem, 300, settled=1e-2)[1] < 150
    assert run(problem, 300, deadline=time.perf_counter())[1] < 60


@every_penalty
def test_steps_on_some_features_solve_the_program_of_these(penalty):
    problem = small_problem("logistic", penalty)
    index = torch.tensor([6, 1, 3])
    part = small_problem("logistic", penalty, features=problem.features.matrix[:, index], strength=problem.strength)
    found, _ = run(problem, 300, index=index)
    assert objective(part, found) == pytest.approx(solve(part, tol=1e-9).certificate.primal, rel=1e-6)


def test_features_of_very_different_scales_do_not_slow_each_other_down():
    scales = 10.0 ** torch.linspace(-3, 3, 8, dtype=torch.float64)
    scaled = small_problem("squared", "ridge", features=spikes(0, 30, 8) * scales, strength=1e-9)
    expected = solve(small_problem("squared", "ridge", strength=1e-9), tol=1e-10).certificate.primal
    found, _ = run(scaled, 300)
    assert scaled.mean_loss(scaled.features.scores(found.weight, found.bias)) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("penalty", ["group_l1", "l1"])
def test_a_column_that_is_almost_zero_stops_no_steps(penalty):
    """As of a neuron whose only spikes are many time constants old."""
    matrix = spikes(0, 60, 8).double()
    matrix[:, 3] *= 1e-30
    problem = small_problem(penalty=penalty, features=matrix, n=60)
    found, _ = run(problem, 40, torch.float32)
    assert objective(problem, found) == pytest.approx(solve(problem).certificate.primal, rel=1e-3)
