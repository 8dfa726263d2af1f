"""Outputs that see different features: products, solutions and certificates against dense ones built by hand."""

import numpy as np
import pytest
import torch

from snn_recon_plugin.convex import Features, FilteredFeatures, Problem, solve
from snn_recon_plugin.errors import DataError, OptionError

from .helpers import LOSS_FORMULAS, follow, labels, random

N, K, P, C = 60, 3, 6, 4
FILTERS = torch.tensor([0, 2, 1, 2])
GAINS = torch.tensor([[1.0, 6.0, 2.5, 6.0]])
ROWS = 1 + torch.arange(N)[:, None] % 3 * torch.tensor([[0.5, 0.2, 0.9, 0.2]])  # as for scores at several time steps


def matrices(dtype=torch.float64):
    """One filter's features are a few times those of another, as leaks from 0 to 0.99 make them."""
    shared = random(0, N, 1, P).abs()
    return (shared * torch.tensor([1.0, 3.0, 8.0], dtype=torch.float64)[:, None] + 0.3 * random(1, N, K, P).abs()).to(dtype)


def column_of(kind):
    return {"none": None, "gains": GAINS, "rows": GAINS * ROWS}[kind]


def filtered(bias="gains", dtype=torch.float64, weights=None):
    return FilteredFeatures(matrices(dtype), FILTERS, column_of(bias), weights)


def problem(loss, penalty, strength=1e-2, bias="gains"):
    return Problem(filtered(bias), labels(0, N, C), loss=loss, penalty=penalty, strength=strength, num_outputs=C)


def dense(bias="gains"):
    """For each output its features (N, P) and its bias column (N,), in numpy."""
    column = column_of(bias)
    column = np.zeros((N, C)) if column is None else column.expand(N, C).numpy()
    return [matrices().numpy()[:, k] for k in FILTERS.tolist()], column


def dense_scores(weight, bias, kind="gains"):
    of_outputs, column = dense(kind)
    return np.stack([of_outputs[c] @ weight[c] + column[:, c] * bias[c] for c in range(C)], 1)


def slopes(rows, kind="gains"):
    of_outputs, column = dense(kind)
    return np.stack([rows[:, c] @ of_outputs[c] for c in range(C)]) / N, (rows * column).sum(0) / N


def penalty_of(name, weight):
    return {"ridge": 0.5 * (weight**2).sum(), "l1": np.abs(weight).sum(), "group_l1": np.linalg.norm(weight, axis=0).sum()}[name]


def conjugate_of(name, gradient, strength):
    """The factor that makes a gradient feasible, and the conjugate there."""
    if name == "ridge":
        return 1.0, (gradient**2).sum() / (2 * strength)
    size = np.abs(gradient).max() if name == "l1" else np.linalg.norm(gradient, axis=0).max()
    return min(1.0, strength / size), 0.0


@pytest.mark.parametrize("bias", ["none", "gains", "rows"])
def test_products_are_the_dense_ones(bias):
    weights = torch.linspace(0.0, 3.0, N, dtype=torch.float64)
    features, share = filtered(bias, weights=weights), (weights / weights.sum()).numpy()
    W, b, U = random(1, C, P), random(2, C), random(3, N, C)
    of_outputs, column = dense(bias)
    scores = dense_scores(W.numpy(), b.numpy(), bias)
    np.testing.assert_allclose(features.scores(W, b), scores, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(features.scores_of(matrices(), column_of(bias), W, b), scores, rtol=1e-12)
    for c in range(C):
        own, weighted = of_outputs[c], share * column[:, c]
        centre = weighted @ own / max(weighted @ column[:, c], 1e-300)
        np.testing.assert_allclose(features.mean[c], centre, rtol=1e-12, atol=1e-12)
        centred = own - np.outer(column[:, c], centre)
        np.testing.assert_allclose(features.variance[c], share @ centred**2, rtol=1e-10)
        np.testing.assert_allclose(features.adjoint(U)[0][c], (share * U[:, c].numpy()) @ centred, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(features.second_moments(U.abs())[c], (share * U[:, c].abs().numpy()) @ centred**2, rtol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("index", [None, torch.tensor([1, 4])])
def test_columns_have_the_same_products(dtype, index):
    features = filtered(dtype=torch.float32)
    columns, chosen = features.columns(index, dtype), torch.arange(P) if index is None else index
    W, b, U = random(1, C, len(chosen)).to(dtype), random(2, C).to(dtype), random(3, N, C).to(dtype)
    full = torch.zeros(C, P, dtype=torch.float64)
    full[:, chosen] = W.double()
    close = {"rtol": 1e-4, "atol": 1e-4}
    torch.testing.assert_close(columns.scores(W, b).double(), features.scores(full, b.double()), **close)
    torch.testing.assert_close(columns.centred_scores(W, b).double(), features.centred_scores(full, b.double()), **close)
    weight, bias = features.adjoint(U.double())
    torch.testing.assert_close(columns.adjoint(U)[0].double(), weight[:, chosen], **close)
    torch.testing.assert_close(columns.adjoint(U)[1].double(), bias, **close)
    torch.testing.assert_close(bias, features.row_mean(features.bias_column * U.double()))


def test_a_gram_matrix_is_the_mean_over_outputs():
    features, spread = filtered(), random(3, N).abs()
    each = torch.stack([features.of_output(c).gram(spread) for c in range(C)])
    torch.testing.assert_close(features.gram(spread), each.mean(0))
    moments = features.second_moments(spread[:, None])
    torch.testing.assert_close(moments[0], each.mean(0).diagonal())


def test_a_part_of_the_rows_represents_all():
    features, rows = filtered(), torch.tensor([5, 0, 33])
    part, U = features.part(rows, 0.25), random(3, 3, C)
    spread = torch.zeros(N, C, dtype=torch.float64)
    spread[rows] = U / 0.25
    torch.testing.assert_close(part.adjoint(U), features.adjoint(spread))


@pytest.mark.parametrize("bias", ["none", "gains", "rows"])
@pytest.mark.parametrize("penalty", ["ridge", "group_l1"])
@pytest.mark.parametrize("loss", ["cross_entropy", "squared_hinge", "squared"])
def test_the_certificate_is_that_of_the_program_written_out(loss, penalty, bias):
    made = problem(loss, penalty, bias=bias)
    solution = solve(made, tol=1e-7)
    assert solution.certificate.reached
    weight, shift, formulas = solution.weight.numpy(), solution.bias.numpy(), LOSS_FORMULAS[loss]
    targets = formulas.encode(labels(0, N, C).numpy(), C)
    scores = dense_scores(weight, shift, bias)
    primal = formulas.value(scores, targets).mean() + made.strength * penalty_of(penalty, weight)
    rows = formulas.gradient(scores, targets)
    gradient, of_bias = slopes(rows, bias)
    assert np.abs(of_bias).max() < 1e-8
    scale, conjugate = conjugate_of(penalty, gradient, made.strength)
    dual = -formulas.conjugate(scale * rows, targets).mean() - conjugate
    assert solution.certificate.primal == pytest.approx(primal, rel=1e-10)
    assert -1e-10 <= primal - dual <= 2e-7 * formulas.value(0 * scores, targets).mean()


@pytest.mark.parametrize("bias", ["gains", "rows"])
def test_a_loss_with_kinks_has_its_bias_for_each_output(bias):
    assert solve(problem("hinge", "ridge", 0.1, bias), tol=1e-4).certificate.reached


@pytest.mark.parametrize("penalty", ["ridge", "group_l1"])
def test_filters_that_are_the_same_give_the_solution_of_one(penalty):
    one = matrices()[:, 1]
    alike = FilteredFeatures(one[:, None].repeat(1, K, 1), FILTERS, 2.0)
    plain = Features(one, 2.0)
    for loss in ("cross_entropy", "squared_hinge"):
        both = [Problem(each, labels(0, N, C), loss=loss, penalty=penalty, num_outputs=C, strength=1e-2) for each in (alike, plain)]
        assert both[0].critical_strength() == pytest.approx(both[1].critical_strength(), rel=1e-10)
        solutions = [solve(each, tol=1e-9) for each in both]
        torch.testing.assert_close(solutions[0].weight, solutions[1].weight, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(solutions[0].bias, solutions[1].bias, rtol=1e-3, atol=1e-4)


def test_a_path_chooses_by_held_out_samples_of_all_filters():
    path = follow(problem("squared_hinge", "ridge"), matrices(), labels(0, N, C), bias_column=GAINS)
    point = path.chosen
    scores = dense_scores(point.solution.weight.numpy(), point.solution.bias.numpy())
    formulas = LOSS_FORMULAS["squared_hinge"]
    held_out = formulas.value(scores, formulas.encode(labels(0, N, C).numpy(), C)).mean()
    assert point.heldout_loss == pytest.approx(held_out, rel=1e-10)


@pytest.mark.parametrize("solver", ["clarabel", "scs"])
def test_solvers_without_filters_refuse_them(solver):
    with pytest.raises(OptionError, match="separate temporal filters") as caught:
        solve(problem("squared", "ridge"), solver=solver)
    assert "one temporal filter" in caught.value.needed
    assert "newton" in caught.value.fix


@pytest.mark.parametrize(
    ("shape", "filters", "bias"),
    [((5, 6), [0, 0], 1.0), ((5, 3, 6), [0, 1], 1.0), ((5, 2, 6), [0, 1], torch.ones(5, 3))],
    ids=["one filter", "a filter without an output", "a bias column of other outputs"],
)
def test_shapes_that_do_not_fit_are_refused(shape, filters, bias):
    with pytest.raises(DataError):
        FilteredFeatures(torch.rand(shape), torch.tensor(filters), bias)
