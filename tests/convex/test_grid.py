"""Rounding to a grid: second derivatives against autograd, and whole numbers that cost less than rounding each alone."""

import pytest
import torch

from snn_recon_plugin.convex import Problem, solve
from snn_recon_plugin.convex.grid import Grid, round_columns, second_derivatives

from .helpers import every_bias, labels, random, round_nearest, small_problem, spikes


def optimum(loss, bias="one", **options):
    problem = small_problem(loss, "ridge", bias=bias, **options)
    solution = solve(problem, tol=1e-10)
    return problem, solution.weight, solution.bias


def correlated(n, p):
    """Features that have much in common, as those of hidden neurons."""
    return spikes(0, n, p).double() @ (0.3 + random(1, p, p).abs())


@pytest.mark.parametrize(("bits", "largest"), [(2, 1), (3, 3), (4, 7), (8, 127)])
def test_a_grid_is_symmetric(bits, largest):
    grid = Grid(bits)
    assert grid.largest == largest
    assert grid.round(torch.tensor([-1e3, -0.6, 0.2, 1e3])).tolist() == [-largest, -1.0, 0.0, largest]


@pytest.mark.parametrize("per_channel", [True, False])
def test_the_widest_scale_puts_the_largest_weight_on_the_grids_end(per_channel):
    weight = torch.tensor([[1.0, -6.0], [3.0, 1.0], [0.0, 0.0]], dtype=torch.float64)
    ratios = torch.tensor([1.0, 2.0, 1.0], dtype=torch.float64)
    scale = Grid(3, None if per_channel else ratios).widest(weight)
    assert scale.tolist() == ([2.0, 1.0, 1.0] if per_channel else [2.0, 4.0, 2.0])


@every_bias
@pytest.mark.parametrize("loss", ["squared_hinge", "logistic", "squared"])
def test_second_derivatives_are_those_after_the_bias(loss, bias):
    problem, weight, start = optimum(loss, bias)
    point, columns = problem.evaluate(weight, start), torch.tensor([0, 3, 5])
    found = second_derivatives(problem, point, columns)
    matrix, column, weights = problem.features.matrix.double(), problem.features.bias_column[:, 0], problem.features.row_weights
    bends = problem.loss.curvature(point.scores, problem.targets).entries()
    for output in range(3):
        both = torch.cat([matrix, column[:, None]], 1)
        whole = both.T @ ((weights * bends[:, output])[:, None] * both) + problem.strength * torch.eye(9, dtype=torch.float64)
        whole[-1, -1] -= problem.strength
        inner, cross, corner = whole[columns][:, columns], whole[columns, -1], whole[-1, -1]
        expected = inner if bias == "none" else inner - torch.outer(cross, cross) / corner
        torch.testing.assert_close(found[output], expected)


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("bits", [2, 3])
@pytest.mark.parametrize("loss", ["squared_hinge", "cross_entropy", "squared"])
def test_columns_that_make_up_for_errors_cost_less(loss, bits, per_channel):
    problem, weight, bias = optimum(loss, n=200, features=correlated(200, 30), share=1e-3)
    grid = Grid(bits, None if per_channel else torch.ones(3, dtype=torch.float64))
    point, alone = round_columns(problem, weight, bias, grid), round_nearest(weight, bias, grid)
    assert torch.equal(point.integers, grid.round(point.integers))
    assert per_channel or len(point.scale.unique()) == 1
    best, rounded = (problem.primal(each.weight, each.bias)[0] for each in (point, alone))
    lowest = problem.objective(weight, bias)
    assert lowest <= best < lowest + 0.7 * (rounded - lowest)
    torch.testing.assert_close(point.bias, problem.evaluate(point.weight, point.bias).bias)


def test_whole_numbers_are_found_again():
    """Weights that lie on a grid stay there."""
    problem, _, bias = optimum("squared", n=100, p=12)
    integers = random(3, 3, 12, scale=2.0).round().clamp(-3, 3)
    integers[:, 0] = 3
    point = round_columns(problem, 0.25 * integers, bias, Grid(3))
    assert torch.equal(point.weight, 0.25 * integers)


def test_wide_layers_are_rounded_in_blocks_and_many_outputs_share_second_derivatives():
    """1,100 columns are two blocks, and 70 outputs too many for a second derivative each."""
    matrix, targets = spikes(0, 60, 1100), labels(0, 60, 70)
    problem = small_problem("squared_hinge", "ridge", features=matrix, n=60, classes=2, strength=1e-3)
    many = Problem(problem.features, targets, loss="squared_hinge", penalty="ridge", strength=1e-2, num_outputs=70)
    weight, bias = 0.1 * random(1, 70, 1100), torch.zeros(70, dtype=torch.float64)
    columns = torch.arange(1000)
    assert second_derivatives(many, many.evaluate(weight, bias), columns).shape == (1, 1000, 1000)
    solution = solve(problem, tol=1e-6)
    point = round_columns(problem, solution.weight, solution.bias, Grid(2))
    alone = round_nearest(solution.weight, solution.bias, Grid(2))
    assert point.integers.shape == (2, 1100)
    assert problem.primal(point.weight, point.bias)[0] < problem.primal(alone.weight, alone.bias)[0]


def test_an_output_and_a_column_of_zeros_stay_zero():
    matrix = spikes(0, 40, 6).double()
    matrix[:, 2] = 0
    problem = small_problem("squared_hinge", "ridge", features=matrix, n=40)
    solution = solve(problem, tol=1e-8)
    point = round_columns(problem, torch.cat([solution.weight[:2], torch.zeros(1, 6)]), solution.bias, Grid(4))
    assert not bool(point.integers[2].any())
    assert not bool(point.integers[:, 2].any())
    assert bool((point.scale > 0).all())
