import pytest
import torch

from snn_recon_plugin.convex import Features, FilteredFeatures
from snn_recon_plugin.convex.solvers import preconditioner as module
from snn_recon_plugin.convex.solvers.preconditioner import cholesky, leading, preconditioner

from ..helpers import random, spikes

N, P, C = 40, 6, 3


def parts():
    """Columns, centred features, curvature weights and diagonals; weights of a size, so that no row is left out."""
    features = Features(spikes(0, N, P).double())
    weights = 0.5 + torch.rand(N, C, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return features.columns(None, torch.float64), features.matrix - features.mean, weights, 0.1 + random(2, C, P).abs()


def exact(centred, weights, diagonal, active):
    gram = (centred[:, active] * weights[:, None] / N).T @ centred[:, active]
    return torch.linalg.inv(gram + torch.diag(diagonal[active]))


def test_one_matrix_if_all_classes_share_the_active_set():
    columns, centred, weights, diagonal = parts()
    residual = random(3, C, P)
    inverse = exact(centred, weights.mean(1), diagonal.mean(0), torch.arange(P))
    torch.testing.assert_close(preconditioner(columns, weights, diagonal, None)(residual), residual @ inverse)


@pytest.mark.parametrize("same", [False, True])
def test_one_matrix_a_class_on_its_own_active_entries(same):
    """Equal weights of all classes, as for the squared loss, take another way to the same matrices."""
    columns, centred, weights, diagonal = parts()
    if same:
        weights = weights[:, :1].expand(N, C).contiguous()
    mask = torch.tensor([[1, 1, 0, 1, 0, 0], [0, 0, 0, 0, 0, 0], [1, 0, 1, 1, 1, 1]], dtype=torch.bool)
    residual = random(3, C, P)
    result = preconditioner(columns, weights, diagonal, mask)(residual)
    for k in range(C):
        active = mask[k].nonzero()[:, 0]
        expected = exact(centred, weights[:, k], diagonal[k], active) @ residual[k, active]
        torch.testing.assert_close(result[k, active], expected)
        assert not result[k, ~mask[k]].any()


def test_few_rows_with_curvature_take_a_matrix_of_rows_for_each_output():
    features, width = Features(random(0, N, 20)), 20
    weights = torch.zeros(N, C, dtype=torch.float64)
    for k in range(C):
        weights[5 * k : 5 * k + 5, k] = torch.linspace(1.0, 2.0, 5)
    diagonal, residual = 0.1 + random(2, C, width).abs(), random(3, C, width)
    result = preconditioner(features.columns(None, torch.float64), weights, diagonal, None)(residual)
    for k in range(C):
        inverse = exact(features.matrix - features.mean, weights[:, k], diagonal[k], torch.arange(width))
        torch.testing.assert_close(result[k], inverse @ residual[k])


def test_filtered_features_with_few_rows_and_no_memory_for_a_matrix_each(monkeypatch):
    monkeypatch.setattr(module, "_MAX_ENTRIES", 0)  # half a GB otherwise
    rows, width = 5, 20
    features = FilteredFeatures(random(0, rows, 2, width), torch.tensor([0, 1, 1]))
    weights = torch.linspace(1.0, 2.0, rows, dtype=torch.float64)[:, None].expand(rows, C)
    diagonal, residual = 0.1 + random(2, C, width).abs(), random(3, C, width)
    result = preconditioner(features.columns(None, torch.float64), weights, diagonal, None)(residual)
    gram = torch.stack([features.of_output(k).gram(weights[:, k]) for k in range(C)]).mean(0)
    torch.testing.assert_close(result, residual @ torch.linalg.inv(gram + diagonal.mean(0).diag()))


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
    rows = leading(torch.tensor(weights, dtype=torch.float64), mass)
    assert (None if rows is None else rows.tolist()) == expected


def test_the_rows_with_most_of_the_curvature_are_close_enough():
    """The condition number of the preconditioned system is small."""
    columns, centred, weights, diagonal = parts()
    weights = torch.exp(-20 * (weights - 0.5))
    full = exact(centred, weights.mean(1), diagonal.mean(0), torch.arange(P))
    approximate = preconditioner(columns, weights, diagonal, None)(torch.eye(P, dtype=torch.float64))
    assert not torch.allclose(approximate, full, rtol=1e-9)  # rows were left out
    values = torch.linalg.eigvals(approximate @ torch.linalg.inv(full)).real
    assert float(values.max() / values.min()) < 1.5


def test_a_singular_matrix_gets_a_ridge_and_one_that_is_not_positive_leaves_its_diagonal():
    columns, *_ = parts()
    zeros = torch.zeros(C, P, dtype=torch.float64)
    assert torch.isfinite(preconditioner(columns, zeros.new_zeros(N, C), zeros, None)(random(3, C, P))).all()
    ones = torch.ones(3, 3, dtype=torch.float64)
    torch.testing.assert_close(cholesky(ones) @ cholesky(ones).T, ones, rtol=1e-6, atol=1e-6)
    matrix = torch.tensor([[4.0, 1e6], [1e6, 1.0]], dtype=torch.float64)
    assert cholesky(matrix).tolist() == [[2.0, 0.0], [0.0, 1.0]]
