import pytest
import torch

from snn_recon_plugin.convex import Features, Problem, newton, solve
from snn_recon_plugin.convex.columns import Columns
from snn_recon_plugin.convex.newton import curvature_moments, newton_direction, prox_point

from ..helpers import BIASES, every_pair, labels, pairs_with_bias, random, small_problem, spikes

every_bias = pytest.mark.parametrize("bias", BIASES)


def direction(problem, point, tol=1e-12, max_products=500, dtype=torch.float64, damping=0.0):
    curvature = problem.loss.curvature(point.scores, problem.targets)
    moments = curvature_moments(problem, curvature)
    ahead = prox_point(problem, point, moments)
    return newton_direction(problem, point, ahead, curvature, damping * moments, dtype=dtype, tol=tol, max_products=max_products)


def step(problem, point, **options):
    move = direction(problem, point, **options)
    return problem.evaluate(point.weight + move.weight, point.bias + move.bias)


@every_bias
def test_one_step_solves_a_quadratic_program(bias):
    """Squared loss with ridge: the normal equations, solved densely."""
    problem = small_problem("squared", "ridge", bias=bias)
    centred = problem.features.matrix.double() - torch.outer(problem.features.bias_column, problem.features.mean)
    gram = centred.T @ centred / 30 + problem.strength * torch.eye(8, dtype=torch.float64)
    expected = torch.linalg.solve(gram, centred.T @ problem.targets / 30).T
    for start in (problem.zero_point(), (random(1, 3, 8), random(2, 3))):
        reached = step(problem, problem.evaluate(*start))
        torch.testing.assert_close(reached.weight, expected, rtol=1e-8, atol=1e-9)
        assert reached.gap < 1e-12


@pairs_with_bias
def test_steps_converge_quadratically_near_the_solution(loss, penalty, bias):
    problem = small_problem(loss, penalty, bias=bias)
    near = solve(problem, tol=1e-3)
    point = problem.evaluate(near.weight, near.bias)
    for _ in range(4):
        point = step(problem, point)
    assert point.gap / problem.zero_loss < 1e-11


@every_pair
def test_the_solution_stays(loss, penalty):
    problem = small_problem(loss, penalty)
    best = solve(problem, tol=1e-12)
    move = direction(problem, problem.evaluate(best.weight, best.bias))
    assert float(move.weight.abs().max()) < 1e-4 * float(best.weight.abs().max())
    assert float(move.bias.abs().max()) < 1e-4 * max(1.0, float(best.bias.abs().max()))


@every_pair
@every_bias
def test_moments_are_the_second_derivatives_in_single_weights(loss, penalty, bias):
    problem = small_problem(loss, penalty, bias=bias)
    point = problem.evaluate(random(1, 3, 8), random(2, 3))
    curvature = problem.loss.curvature(point.scores, problem.targets)
    centred = problem.features.matrix.double() - torch.outer(problem.features.bias_column, problem.features.mean)
    expected = curvature.entries().T @ centred.square() / 30
    moments = curvature_moments(problem, curvature)
    if penalty == "ridge":  # about: the curvature's mean times the features'
        expected = torch.outer(curvature.entries().mean(0), centred.square().mean(0))
    torch.testing.assert_close(moments, expected if moments.dim() == 2 else expected.mean(0))


def test_zero_stays_above_the_critical_strength_and_all_neurons_leave():
    problem = small_problem(share=50.0)
    move = direction(problem, problem.evaluate(*problem.zero_point()))
    assert not move.weight.any()
    assert move.products == 0
    weight = random(1, 3, 8, scale=1e-3)
    move = direction(problem, problem.evaluate(weight, torch.zeros(3)))
    torch.testing.assert_close(move.weight, -weight)


def test_without_a_bias_it_does_not_move():
    problem = small_problem("logistic", "l1", bias="none")
    assert not direction(problem, problem.evaluate(random(1, 3, 8), torch.zeros(3))).bias.any()


@pytest.mark.parametrize("loss", ["cross_entropy", "squared_hinge", "squared_multi_margin"])
def test_products_leave_out_rows_that_hardly_bend_the_loss(loss, monkeypatch):
    """Of a classifier that is nearly sure of most rows: fewer rows, and as good a step."""
    features = spikes(0, 600, 40).double()
    features[100:, :3] += 3 * torch.nn.functional.one_hot(labels(0, 600, 3)[100:])
    problem = small_problem(loss, "ridge", n=600, features=features, share=1e-4)
    near = solve(problem, tol=3e-3)
    point = problem.evaluate(near.weight, near.bias)
    used = []

    def part(columns, rows, share):
        used.append((len(rows), share))
        return whole(columns, rows, share)

    whole = Columns.part
    monkeypatch.setattr(Columns, "part", part)
    less = step(problem, point, tol=0.1)
    ((rows, share),) = used
    assert (rows < 500, share) == (True, pytest.approx(0.97))
    monkeypatch.setattr(newton, "_LEFT_OUT", 0.0)
    all_rows = step(problem, point, tol=0.1)
    assert len(used) == 1
    assert less.objective - near.certificate.dual < 1.5 * (all_rows.objective - near.certificate.dual) + 1e-3 * point.gap
    assert less.gap < point.gap


def test_no_more_products_than_allowed():
    problem = small_problem("cross_entropy", "group_l1", n=80, p=40, share=0.01)
    near = solve(problem, tol=1e-2)
    point = problem.evaluate(near.weight, near.bias)
    assert direction(problem, point, max_products=2).products <= 2
    assert 2 < direction(problem, point).products <= 500


@pytest.mark.parametrize("penalty", ["group_l1", "l1"])
def test_duplicated_columns_leave_the_system_solvable(penalty):
    """Two equal columns make the Hessian singular along their difference."""
    features = spikes(0, 30, 8).double()
    features[:, 1] = features[:, 0]
    problem = small_problem("squared", penalty, features=features, share=0.01)
    near = solve(problem, tol=1e-3)
    for dtype in (torch.float32, torch.float64):
        moved = step(problem, problem.evaluate(near.weight, near.bias), dtype=dtype)
        assert torch.isfinite(moved.weight).all()
        assert moved.objective <= near.certificate.primal + 1e-9


@every_bias
def test_ridge_takes_all_columns_as_they_are(bias, monkeypatch):
    """Also where a neuron never spikes: to leave it out would copy the others at every step."""
    features = spikes(0, 30, 8)
    features[:, 3] = 0
    problem = small_problem("cross_entropy", "ridge", bias=bias, features=features)
    asked, columns = [], problem.features.columns
    monkeypatch.setattr(problem.features, "columns", lambda index, dtype: asked.append(index) or columns(index, dtype))
    found = solve(problem, tol=1e-10)
    assert found.certificate.relative_gap <= 1e-10
    assert asked
    assert asked == [None] * len(asked)
    assert torch.equal(found.weight[:, 3], torch.zeros(3, dtype=torch.float64))


def nearly_separable(loss):
    features = spikes(0, 400, 60)
    targets = (features.double() @ random(1, 60, 3)).argmax(1)
    return Problem(Features(features), targets, loss=loss, penalty="ridge", strength=1e-5)


def hard_problem():
    """Few rows lack their margin, in directions that differ from output to output, and the penalty hardly bends."""
    problem = nearly_separable("squared_hinge")
    near = solve(problem, tol=1e-3)
    return problem, problem.evaluate(near.weight, near.bias)


def test_a_preconditioner_for_each_output_spares_products():
    problem, point = hard_problem()
    curvature = problem.loss.curvature(point.scores, problem.targets)
    moments = curvature_moments(problem, curvature)
    ahead, rest = prox_point(problem, point, moments), {"dtype": torch.float64, "tol": 1e-10, "max_products": 500}
    one = newton_direction(problem, point, ahead, curvature, 0 * moments, **rest)
    each = newton_direction(problem, point, ahead, curvature, 0 * moments, **rest, each=True)
    torch.testing.assert_close(each.weight, one.weight, rtol=1e-4, atol=1e-6)
    assert each.products < 0.5 * one.products
    assert (one.hard, each.hard) == (True, False)  # the one that has them needs no others


def test_matrices_for_each_output_only_where_they_cost_less(monkeypatch):
    problem, point = hard_problem()
    assert not direction(problem, point, max_products=1).hard
    assert direction(problem, point).hard
    monkeypatch.setattr(newton, "_MOST_ENTRIES", 3 * 60 * 60 - 1)
    assert not direction(problem, point).hard  # too large
    mixed = nearly_separable("cross_entropy")  # its outputs are not apart
    near = solve(mixed, tol=1e-3)
    assert not direction(mixed, mixed.evaluate(near.weight, near.bias)).hard


def test_the_solver_takes_them_and_spares_products(monkeypatch):
    problem, _ = hard_problem()
    with_them = solve(problem, tol=1e-8)
    monkeypatch.setattr(newton, "_MATRICES", float("inf"))
    without = solve(problem, tol=1e-8)
    assert with_them.certificate.reached
    assert without.certificate.reached
    assert with_them.products < 0.7 * without.products
    assert with_them.certificate.primal == pytest.approx(without.certificate.primal, rel=1e-6)
