import pytest
import torch

from snn_recon_plugin.convex import Features
from snn_recon_plugin.convex.preconditioner import preconditioner

from ..helpers import random, spikes

N, P, C = 40, 6, 3


def parts(seed=0):
    design = Features(spikes(seed, N, P).double())
    centred = features.matrix - design.mean
    return design.columns(None, torch.float64), centred, random(1, N, C).abs(), 0.1 + random(2, C, P).abs()


def exact(centred, weights, diagonal, active):
    gram = (centred[:, active] * weights[:, None] / N).T @ centred[:, active]
    return torch.linalg.inv(gram + torch.diag(diagonal[active]))


def test_one_matrix_where_all_classes_share_the_active_set(monkeypatch):
    monkeypatch.setattr("snn_recon_plugin.convex.preconditioner._MASS", 1.0)
    columns, centred, weights, diagonal = parts()
    residual = random(3, C, P)
    inverse = exact(centred, weights.mean(1), diagonal.mean(0), torch.arange(P))
    torch.testing.assert_close(preconditioner(columns, weights, diagonal, None)(residual), residual @ inverse)


@pytest.mark.parametrize("same", [False, True])
def test_one_matrix_a_class_on_its_own_active_entries(same, monkeypatch):
    """Equal weights of all classes, as the squared loss has them, take another way to the same matrices."""
    monkeypatch.setattr("snn_recon_plugin.convex.preconditioner._MASS", 1.0)
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


def test_fewer_rows_are_close_enough():
    """With 97 % of the curvature the preconditioned system's condition number is small."""
    columns, centred, weights, diagonal = parts()
    weights = torch.exp(-20 * weights)
    full = exact(centred, weights.mean(1), diagonal.mean(0), torch.arange(P))
    approximate = preconditioner(columns, weights, diagonal, None)(torch.eye(P, dtype=torch.float64))
    assert not torch.allclose(approximate, full, rtol=1e-9)  # rows were left out
    values = torch.linalg.eigvals(approximate @ torch.linalg.inv(full)).real
    assert float(values.max() / values.min()) < 1.5


def test_a_singular_matrix_gets_a_ridge():
    columns, *_ = parts()
    zeros = torch.zeros(C, P, dtype=torch.float64)
    residual = random(3, C, P)
    assert bool(torch.isfinite(preconditioner(columns, torch.zeros(N, C, dtype=torch.float64), zeros, None)(residual)).all())
