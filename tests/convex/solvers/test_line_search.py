"""How far a line search follows a step."""

import pytest
import torch

from snn_recon_plugin.convex import solve
from snn_recon_plugin.convex.solvers.line_search import search
from snn_recon_plugin.convex.solvers.newton_step import Direction

from ..helpers import small_problem


def to_the_optimum(problem, factors):
    """From zero, a multiple of the way to the optimum for each output."""
    best, point = solve(problem, tol=1e-12), problem.evaluate(*problem.zero_point())
    factors = torch.tensor(factors, dtype=torch.float64)
    weight, bias = factors[:, None] * best.weight, factors * (best.bias - point.bias)
    return point, best, Direction(weight, bias, weight, 0)


def test_each_output_goes_as_far_as_is_best_for_it():
    """A quadratic program falls up to the optimum, and rises again beyond."""
    problem = small_problem("squared", "ridge")
    point, best, move = to_the_optimum(problem, [1.0, 8.0, -1.0])
    sizes, moved = search(problem, point, move)
    assert sizes.tolist() == pytest.approx([1.0, 1 / 8, 0.0], abs=1e-5)
    torch.testing.assert_close(moved.weight[:2], best.weight[:2], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(moved.bias[:2], best.bias[:2], rtol=1e-4, atol=1e-6)
    assert float(moved.weight[2].abs().max()) < 1e-5
    assert moved.objective == pytest.approx(problem.objective(moved.weight, moved.bias), rel=1e-12)


@pytest.mark.parametrize(("factor", "size"), [(1.0, 1.0), (8.0, 1 / 8), (-1.0, 0.0)])
@pytest.mark.parametrize("penalty", ["ridge", "group_l1"])  # without kinks, and with
def test_outputs_that_share_a_loss_go_together(penalty, factor, size):
    problem = small_problem("cross_entropy", penalty)
    point, best, move = to_the_optimum(problem, [factor] * 3)
    sizes, moved = search(problem, point, move)
    assert sizes.tolist() == pytest.approx([size], abs=1e-4)
    torch.testing.assert_close(moved.weight, best.weight if size else torch.zeros_like(best.weight), rtol=1e-3, atol=1e-4)


def test_a_weight_that_crosses_a_kink_stays_at_zero_for_its_output_alone():
    problem = small_problem("squared", "l1")
    point = problem.evaluate(torch.full((3, 8), 1e-3), torch.zeros(3))
    output, neuron = divmod(int(point.gradient.argmax()), 8)  # loss and penalty fall as that weight falls
    weight = torch.zeros(3, 8, dtype=torch.float64)
    weight[output, neuron] = -1.0  # far beyond zero, also at the shortest length, while the model lies at the start
    sizes, moved = search(problem, point, Direction(weight, torch.zeros(3, dtype=torch.float64), point.weight, 0))
    expected = point.weight.clone()
    expected[output, neuron] = 0.0
    assert sizes[output] > 0
    assert torch.equal(moved.weight, expected)
