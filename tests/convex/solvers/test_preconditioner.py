import pytest
import torch

from snn_recon_plugin.convex import Features, FilteredFeatures
from snn_recon_plugin.convex.solvers import preconditioner as module
from snn_recon_plugin.convex.solvers.preconditioner import cholesky, heaviest_rows, preconditioner

from ..helpers import random, spikes

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
    """The system of all outputs together."""
    gram = torch.stack([features.of_output(k).gram(weights.mean(1)) for k in range(C)]).mean(0)
    return gram + diagonal_of(features.num_features).mean(0).diag()


@pytest.mark.parametrize("filtered", [False, True])
def test_one_matrix_if_all_classes_share_the_active_set(filtered, monkeypatch):
    features, weights = SPIKES, WEIGHTS
    if filtered:  # with few rows; half a GB would allow a matrix for each output
        monkeypatch.setattr(module, "_MAX_ENTRIES", 0)
        features = FilteredFeatures(random(0, 5, 2, 20), torch.tensor([0, 1, 1]))
        weights = torch.linspace(1.0, 2.0, 5, dtype=torch.float64)[:, None].expand(5, C)
    residual, result = applied(features, weights)
    torch.testing.assert_close(result, residual @ torch.linalg.inv(shared(features, weights)))


@pytest.mark.parametrize("case", ["active sets", "active sets, equal weights", "few rows"])
def test_one_matrix_a_class(case):
    """Equal weights, as for the squared loss, and few rows with curvature take other ways to the same matrices."""
    features, weights, mask = SPIKES, WEIGHTS, MASK
    if case == "active sets, equal weights":
        weights = WEIGHTS[:, :1].expand(N, C).contiguous()
    elif case == "few rows":
        features, mask = WIDE, torch.ones(C, 20, dtype=torch.bool)
        weights = WEIGHTS * (torch.arange(N)[:, None] // 5 == torch.arange(C))
    residual, result = applied(features, weights, mask=None if case == "few rows" else mask)
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
