"""How far a Newton step goes, and that outputs which are programs of their own are treated as such."""

import pytest
import torch

from snn_recon_plugin.convex import LOSSES, solve
from snn_recon_plugin.convex.line_search import search
from snn_recon_plugin.convex.margin import SmoothedHinge
from snn_recon_plugin.convex.newton import Direction

from .helpers import PENALTY_NAMES, random, small_problem

APART = ("logistic", "hinge", "squared_hinge", "squared")


def to_the_optimum(problem, factors):
    """From zero, so many times as far as the optimum for each output."""
    best, point = solve(problem, tol=1e-12), problem.evaluate(*problem.zero_point())
    factors = torch.tensor(factors, dtype=torch.float64)
    weight, bias = factors[:, None] * best.weight, factors * (best.bias - point.bias)
    return point, best, Direction(weight, bias, weight, 0)


@pytest.mark.parametrize("penalty", PENALTY_NAMES)
@pytest.mark.parametrize("loss", LOSSES)
def test_parts_add_up_to_the_objective(loss, penalty):
    problem = small_problem(loss, penalty)
    weight, bias = random(1, 3, 8), random(2, 3)
    parts = problem.parts(weight, problem.design.scores(weight, bias))
    assert float(parts.sum()) == pytest.approx(problem.objective(weight, bias), rel=1e-12)
    assert len(parts) == (3 if loss in APART and not penalty.startswith("group") else 1)


def test_parts_of_a_smoothing_around_a_dual_point():
    problem = small_problem("hinge", "ridge")
    weight, scores = random(1, 3, 8), random(2, 30, 3)
    smooth = problem.with_loss(SmoothedHinge(0.3, random(3, 30, 3)))
    whole = smooth.mean_loss(scores) + smooth.strength * float(smooth.penalty.value(weight))
    assert float(smooth.parts(weight, scores).sum()) == pytest.approx(whole, rel=1e-12)


def test_each_output_goes_as_far_as_is_best_for_it():
    """A quadratic program falls up to the optimum, and rises again beyond."""
    problem = small_problem("squared", "ridge")
    point, best, direction = to_the_optimum(problem, [1.0, 8.0, -1.0])
    sizes, moved = search(problem, point, direction)
    assert sizes.tolist() == [1.0, 1 / 8, 0.0]
    torch.testing.assert_close(moved.weight[:2], best.weight[:2])
    torch.testing.assert_close(moved.bias[:2], best.bias[:2])
    assert not moved.weight[2].any()
    assert moved.objective == pytest.approx(problem.objective(moved.weight, moved.bias), rel=1e-12)


@pytest.mark.parametrize(("factor", "size"), [(1.0, 1.0), (8.0, 1 / 8), (-1.0, 0.0)])
def test_outputs_that_share_a_loss_go_together(factor, size):
    problem = small_problem("cross_entropy", "ridge")
    point, best, direction = to_the_optimum(problem, [factor] * 3)
    sizes, moved = search(problem, point, direction)
    assert sizes.tolist() == [size]
    torch.testing.assert_close(moved.weight, best.weight if size else torch.zeros_like(best.weight))


def test_what_crosses_a_kink_stays_at_zero_for_its_output_alone():
    problem = small_problem("squared", "l1")
    point = problem.evaluate(torch.full((3, 8), 1e-3), torch.zeros(3))
    output, neuron = divmod(int(point.gradient.argmax()), 8)  # the loss falls as that weight does, and so does the penalty
    weight = torch.zeros(3, 8, dtype=torch.float64)
    weight[output, neuron] = -1.0  # far beyond zero, also at the shortest length, while the model lies where it began
    sizes, moved = search(problem, point, Direction(weight, torch.zeros(3, dtype=torch.float64), point.weight, 0))
    expected = point.weight.clone()
    expected[output, neuron] = 0.0
    assert sizes[output] > 0
    assert torch.equal(moved.weight, expected)


@pytest.mark.parametrize(("loss", "penalty"), [("squared_hinge", "ridge"), ("logistic", "l1+ridge"), ("hinge", "ridge")])
def test_outputs_solved_together_are_as_solved_alone(loss, penalty):
    problem = small_problem(loss, penalty, share=0.01)
    together = solve(problem, tol=1e-9)
    total = 0.0
    for k in range(3):
        alone = small_problem(loss, penalty, strength=problem.strength)
        alone.targets, alone.num_outputs = problem.targets[:, k : k + 1], 1
        found = solve(alone, tol=1e-9)
        total += found.certificate.primal
        torch.testing.assert_close(found.weight[0], together.weight[k], rtol=1e-3, atol=1e-4)
    assert together.certificate.primal == pytest.approx(total, rel=1e-7)
