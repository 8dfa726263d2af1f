"""Directions of single Newton steps."""

import pytest
import torch

from snn_recon_plugin.convex import Features, Problem, solve
from snn_recon_plugin.convex.solvers.newton_step import (
    BentGrams,
    cholesky,
    exact_direction,
    has_exact_steps,
    heaviest_rows,
    newton_direction,
    preconditioner,
)
from snn_recon_plugin.convex.solvers.solver import Budget

from ..helpers import every_bias, labels, pairs_with_bias, random, small_problem, spikes


def direction(problem, point, tol=1e-12, dtype=torch.float64, budget=None):
    return newton_direction(problem, point, torch.zeros(1), budget or Budget(problem), dtype=dtype, tol=tol)


def step(problem, point, **options):
    weight, bias, _ = direction(problem, point, **options)
    return problem.evaluate(point.weight + weight, point.bias + bias)


def near(problem, tol=1e-3):
    found = solve(problem, tol=tol)
    return problem.evaluate(found.weight, found.bias)


@every_bias
def test_one_step_solves_a_quadratic_program(bias):
    """Squared loss with ridge: the normal equations, solved densely."""
    problem = small_problem("squared", "ridge", bias=bias)
    centred = problem.features.matrix.double() - problem.features.bias_column @ problem.features.mean
    gram = centred.T @ centred / 30 + problem.strength * torch.eye(8, dtype=torch.float64)
    expected = torch.linalg.solve(gram, centred.T @ problem.targets / 30).T
    for start in (problem.zero_point(), (random(1, 3, 8), random(2, 3))):
        reached = step(problem, problem.evaluate(*start))
        torch.testing.assert_close(reached.weight, expected, rtol=1e-8, atol=1e-9)
        assert reached.gap < 1e-12


@pairs_with_bias
def test_steps_converge_quadratically_near_the_solution(loss, penalty, bias):
    problem = small_problem(loss, penalty, bias=bias)
    point = near(problem)
    for _ in range(4):
        point = step(problem, point)
    assert point.gap / problem.zero_loss < 1e-11


def test_zero_stays_above_the_critical_strength_and_all_neurons_leave():
    problem = small_problem(share=50.0)
    budget = Budget(problem)
    assert not direction(problem, problem.evaluate(*problem.zero_point()), budget=budget)[0].any()
    assert budget.done == 0
    weight = random(1, 3, 8, scale=1e-3)
    torch.testing.assert_close(direction(problem, problem.evaluate(weight, torch.zeros(3)))[0], -weight)


class Recording(Features):
    """Features that record the number of rows and the share of each part."""

    def part(self, rows, share):
        self.parts.append((len(rows), share))
        return super().part(rows, share)


@pytest.mark.parametrize("loss", ["cross_entropy", "squared_hinge"])
def test_products_leave_out_rows_with_little_curvature(loss):
    """A classifier with large margins on most rows: fewer rows, and a step that is about as good."""
    matrix, classes = spikes(0, 600, 40).double(), labels(0, 600, 3)
    matrix[100:, :3] += 3 * torch.nn.functional.one_hot(classes[100:])
    features = Recording(matrix)
    features.parts = []
    problem = Problem(features, classes, loss=loss, penalty="ridge")
    problem = problem.with_strength(1e-4 * problem.critical_strength())
    point = near(problem, 3e-3)
    features.parts.clear()
    less = step(problem, point, tol=0.1)
    ((rows, share),) = features.parts
    assert (rows < 500, share) == (True, pytest.approx(0.97))
    exact = step(problem, point, tol=1e-12)
    assert less.objective - exact.dual < 1.5 * (exact.objective - exact.dual) + 0.3 * point.gap
    assert less.gap < point.gap


def test_no_more_products_than_allowed():
    problem = small_problem("cross_entropy", "group_l1", n=80, p=40, share=0.01)
    point = near(problem, 1e-2)
    few, many, inverse = Budget(problem, products=4), Budget(problem), Budget(problem)
    for budget in (few, many):
        direction(problem, point, budget=budget)
    inverse.add_inverse(40)  # a preconditioner, of these features at most
    assert 0 < few.done <= 4 + inverse.done
    assert few.done + 2 < many.done <= 1000 + inverse.done


def test_an_output_that_is_solved_takes_no_step_while_others_do():
    """In float32 the inner products of ever smaller residuals underflow, and a quotient of them is no number."""
    scales = torch.logspace(0, 3, 40)
    features = Features(random(0, 200, 40).float() * scales)
    targets = torch.stack([torch.full((200,), 0.5, dtype=torch.float64), random(1, 200)], 1)
    problem = Problem(features, targets, loss="squared", penalty="ridge", strength=1e-6)
    optimum = solve(problem, tol=1e-12)
    weight = torch.stack([optimum.weight[0] + 1e-13, torch.zeros(40, dtype=torch.float64)])
    found = direction(problem, problem.evaluate(weight, optimum.bias), tol=1e-7, dtype=torch.float32)
    assert bool(torch.isfinite(found[0]).all())
    assert float(found[0][0].norm()) < 1e-15
    torch.testing.assert_close(found[0][1], optimum.weight[1], rtol=0.1, atol=1e-3 * float(optimum.weight[1].abs().max()))


# -- preconditioners ---------------------------------------------------------------------------------------------------
N, P, C = 40, 6, 3
SPIKES, WIDE = Features(spikes(0, N, P).double()), Features(random(0, N, 20))
WEIGHTS = 0.5 + torch.rand(N, C, generator=torch.Generator().manual_seed(1), dtype=torch.float64)  # so that no row is left out
MASK = torch.tensor([[1, 1, 0, 1, 0, 0], [0, 0, 0, 0, 0, 0], [1, 0, 1, 1, 1, 1]], dtype=torch.bool)


def diagonal_of(width):
    return 0.1 + random(2, C, width).abs()


def applied(features, weights, residual=None, mask=None):
    """Residuals, and what the preconditioner makes of them."""
    width = features.num_features
    residual = random(3, C, width) if residual is None else residual
    return residual, preconditioner(features.columns(None, torch.float64), weights, diagonal_of(width), mask)(residual)


def shared(features, weights):
    return features.gram(weights.mean(1)) + diagonal_of(features.num_features).mean(0).diag()


def test_one_matrix_if_all_classes_share_the_active_set():
    residual, result = applied(SPIKES, WEIGHTS)
    torch.testing.assert_close(result, residual @ torch.linalg.inv(shared(SPIKES, WEIGHTS)))


@pytest.mark.parametrize("case", ["active sets", "active sets, equal weights", "few rows"])
def test_one_matrix_a_class(case):
    """Equal weights, as for the squared loss, and few rows with curvature take other ways to the same matrices."""
    features, weights, mask = SPIKES, WEIGHTS, MASK
    if case == "active sets, equal weights":
        weights = WEIGHTS[:, :1].expand(N, C).contiguous()
    elif case == "few rows":
        features, mask = WIDE, torch.ones(C, 20, dtype=torch.bool)
        weights = WEIGHTS * (torch.arange(N)[:, None] // 5 == torch.arange(C))
    residual, result = applied(features, weights, mask=mask)
    for k, active in enumerate(mask):
        system = features.gram(weights[:, k]) + diagonal_of(features.num_features)[k].diag()
        torch.testing.assert_close(result[k, active], torch.linalg.solve(system[active][:, active], residual[k, active]))
        assert not result[k, ~active].any()


@pytest.mark.parametrize(
    ("weights", "mass", "expected"),
    [
        ([1, 1, 1, 0, 0, 0, 0, 0], 0.5, [0, 1, 2]),  # equal weights, as at a kink, enter together
        ([0, 10, 0, 0, 2, 0.1, 0, 0], 0.95, [1, 4]),
        ([0, 10, 0, 0, 2, 0.1, 0, 0], 1.0, None),
        ([1] * 8, 0.97, None),  # most rows would be needed
    ],
)
def test_leading_rows(weights, mass, expected):
    rows = heaviest_rows(torch.tensor(weights, dtype=torch.float64), mass)
    assert (None if rows is None else rows.tolist()) == expected


def test_the_rows_with_most_of_the_curvature_are_close_enough():
    """The condition number of the preconditioned system is small."""
    weights = 1e3 * torch.exp(-20 * (WEIGHTS - 0.5))
    system = shared(SPIKES, weights)
    _, approximate = applied(SPIKES, weights, torch.eye(P, dtype=torch.float64))
    assert not torch.allclose(approximate, torch.linalg.inv(system), rtol=1e-9)  # rows were left out
    values = torch.linalg.eigvals(approximate @ system).real
    assert float(values.max() / values.min()) < 1.5


def test_a_singular_matrix_gets_a_ridge_and_one_that_is_not_positive_leaves_its_diagonal():
    zeros, columns = torch.zeros(C, P, dtype=torch.float64), SPIKES.columns(None, torch.float64)
    assert torch.isfinite(preconditioner(columns, zeros.new_zeros(N, C), zeros, None)(random(3, C, P))).all()
    ones = torch.ones(3, 3, dtype=torch.float64)
    torch.testing.assert_close(cholesky(ones) @ cholesky(ones).T, ones, rtol=1e-6, atol=1e-6)
    matrix = torch.tensor([[4.0, 1e6], [1e6, 1.0]], dtype=torch.float64)
    assert cholesky(matrix).tolist() == [[2.0, 0.0], [0.0, 1.0]]


# -- exact steps ----------------------------------------------------------------------------------------------------------------
def program(case, loss="squared_hinge", rows=120, outputs=3, width=20):
    """A program with something that could upset the matrices that are kept."""
    features, targets, column, weights = spikes(0, rows, width).float(), labels(1, rows, outputs), 0.7, None
    features[:, : min(outputs, width)] += torch.nn.functional.one_hot(targets)[:, :width]
    if case == "duplicate rows":
        features[rows // 2 :], targets[rows // 2 :] = features[: rows // 2].clone(), targets[: rows // 2].clone()
    elif case == "no bias":
        column = None
    elif case == "bias by row":
        column = torch.linspace(0.4, 2.0, rows)
    elif case == "weights":
        weights = (torch.arange(rows) % 3).double()
    elif case == "no sample of a class":
        targets[targets == 2] = 1
    elif case == "constant columns":
        features[:, :4] = torch.tensor([0.0, 1.0, 3.0, 0.1])
    elif case == "integers":
        features = features.to(torch.uint8)
    return Problem(Features(features, column, weights), targets, loss=loss, penalty="ridge", num_outputs=outputs)


CASES = ("plain", "duplicate rows", "no bias", "bias by row", "weights", "no sample of a class", "constant columns", "integers")


@pytest.mark.parametrize(
    ("case", "loss"), [*((case, "squared_hinge") for case in CASES), ("plain", "squared"), ("weights", "huber")]
)
def test_exact_steps_reach_the_optimum_of_conjugate_gradients_at_every_strength(case, loss, monkeypatch):
    exact, top = program(case, loss), program(case, loss).critical_strength()
    assert has_exact_steps(exact)
    found = [solve(exact.with_strength(share * top)) for share in (1e-1, 1e-3, 1e-5)]
    monkeypatch.setattr("snn_recon_plugin.convex.solvers.newton.has_exact_steps", lambda problem: False)
    known = [solve(program(case, loss).with_strength(share * top), tol=1e-8) for share in (1e-1, 1e-3, 1e-5)]
    for one, other in zip(found, known, strict=True):
        assert one.certificate.reached
        assert one.certificate.primal == pytest.approx(other.certificate.primal, abs=1e-6 * exact.zero_loss)


@pytest.mark.parametrize(("rows", "outputs", "width"), [(300, 2, 20), (120, 60, 5), (8, 3, 20)])
def test_exact_steps_for_two_and_for_many_classes_and_for_few_rows(rows, outputs, width, monkeypatch):
    exact = program("plain", rows=rows, outputs=outputs, width=width).with_strength(1e-3)
    found = solve(exact)
    monkeypatch.setattr("snn_recon_plugin.convex.solvers.newton.has_exact_steps", lambda problem: False)
    other = solve(program("plain", rows=rows, outputs=outputs, width=width).with_strength(1e-3))
    assert found.certificate.reached
    assert found.certificate.primal == pytest.approx(other.certificate.primal, abs=2e-6 * exact.zero_loss)


def test_matrices_are_kept_where_they_fit_and_rows_are_not_few():
    assert not has_exact_steps(program("plain", rows=6))
    assert has_exact_steps(program("plain", rows=7))
    wide = {"rows": 1000, "outputs": 1000, "width": 400}
    assert not has_exact_steps(program("plain", **wide))  # 161 million numbers
    assert has_exact_steps(program("plain", "squared", **wide))  # all outputs share one
    for loss, penalty in (("cross_entropy", "ridge"), ("squared_hinge", "group_l1")):
        assert not has_exact_steps(small_problem(loss, penalty))


def test_an_exact_step_is_the_one_of_the_whole_system():
    problem = program("plain").with_strength(0.01)
    point = near(problem, tol=0.3)
    wanted = direction(problem, point)
    first, second = Budget(problem), Budget(problem)
    found = exact_direction(problem, point, first, torch.float64)
    torch.testing.assert_close(found[:2], wanted[:2], rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(exact_direction(problem, point, second, torch.float64)[0], found[0])
    assert 0 < second.done < first.done  # no row enters a second time


def test_matrices_go_on_to_the_same_rows_with_other_weights():
    whole = program("plain")
    bent = torch.rand(120, 3, generator=torch.Generator().manual_seed(3)) < 0.5

    def columns(weights):
        return Features(whole.features.matrix, 0.7, weights).columns(None, torch.float64)

    apart, full = columns((torch.arange(120) % 4 > 0).double()), columns(None)
    kept = BentGrams(apart, 3)
    for current, mask in ((apart, bent), (full, bent), (full, ~bent), (apart, bent)):
        found, entered = kept.update(current, mask)
        fresh = BentGrams(apart, 3)  # the same centre
        fresh.weights = current.row_weights
        expected, rows = fresh.update(current, mask)
        torch.testing.assert_close(found, expected)
        assert entered <= rows
    assert kept.update(full, bent)[1] < BentGrams(full, 3).update(full, bent)[1]
