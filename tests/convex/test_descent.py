"""Descent on a grid: it never climbs, and ends where no single change of a whole number gains."""

import itertools

import pytest
import torch

from snn_recon_plugin.convex import FilteredFeatures, Grid, Problem, descend_on_grid, round_columns, solve
from snn_recon_plugin.convex.grid import round_nearest

from .helpers import every_bias, labels, random, small_problem


def program(loss, bias="one", **options):
    problem = small_problem(loss, "ridge", bias=bias, **options)
    return problem, solve(problem, tol=1e-9)


@every_bias
@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("loss", ["squared_hinge", "cross_entropy", "logistic", "squared", "huber"])
def test_no_step_climbs(loss, per_channel, bias):
    problem, solution = program(loss, bias, n=150, p=20, share=1e-2)
    grid = Grid(2, None if per_channel else torch.ones(3, dtype=torch.float64))
    start = round_nearest(solution.weight, solution.bias, grid)
    point = descend_on_grid(problem, start, grid)
    before, after = (problem.objective(each.weight, each.bias) for each in (start, point))
    assert problem.objective(solution.weight, solution.bias) <= after < before
    assert torch.equal(point.integers, grid.round(point.integers))
    assert per_channel or len(point.scale.unique()) == 1
    assert bool((point.scale > 0).all())


@pytest.mark.parametrize("loss", ["squared", "cross_entropy"])
def test_no_single_change_gains_in_the_end(loss):
    problem, solution = program(loss, n=80, p=6, share=1e-2)
    grid = Grid(3)
    point = descend_on_grid(problem, round_columns(problem, solution.weight, solution.bias, grid), grid)
    reached = problem.primal(point.weight, point.bias)[0]
    for output, column, move in itertools.product(range(3), range(6), (-1, 1)):
        integers = point.integers.clone()
        integers[output, column] += move
        if abs(integers[output, column]) <= grid.largest:
            changed = problem.primal(point.scale[:, None] * integers, point.bias)[0]
            assert changed > reached - 2e-4 * problem.zero_loss


def test_few_weights_reach_the_best_grid_point():
    """Of all whole numbers, each with its best scale, the found ones are best or nearly so."""
    problem, solution = program("squared", n=60, p=3, classes=2, share=1e-2)
    grid = Grid(2)
    point = descend_on_grid(problem, round_columns(problem, solution.weight, solution.bias, grid), grid)
    found, lowest = problem.primal(point.weight, point.bias)[0], problem.objective(solution.weight, solution.bias)
    best = torch.inf
    for row in itertools.product((-1, 0, 1), repeat=6):
        integers = torch.tensor(row, dtype=torch.float64).reshape(2, 3)
        for scale in torch.linspace(0.05, 1.5, 30).tolist():
            best = min(best, problem.primal(scale * float(point.scale.mean()) * integers, point.bias)[0])
    assert found <= best + 0.2 * (best - lowest) + 1e-3 * problem.zero_loss


def test_outputs_may_see_different_features():
    features = FilteredFeatures(random(0, 80, 2, 10).abs(), torch.tensor([0, 1, 1]), 1.0)
    problem = Problem(features, labels(0, 80, 3), loss="squared_hinge", penalty="ridge", strength=1e-3)
    solution, grid = solve(problem, tol=1e-8), Grid(2)
    start = round_nearest(solution.weight, solution.bias, grid)
    point = descend_on_grid(problem, start, grid)
    assert problem.objective(point.weight, point.bias) < problem.primal(start.weight, start.bias)[0]
