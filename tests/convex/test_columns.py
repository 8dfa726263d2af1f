import pytest
import torch

from snn_recon_plugin.convex import Design

from .helpers import BIASES, bias_column, random, spikes

N, P, C = 23, 7, 3


def columns_of(dtype, bias="one", index=None, working=torch.float64):
    """Columns of a weighted design, and the dense float64 pieces: centred features, column, row weights."""
    features = (spikes(0, N, P) if dtype in (torch.bool, torch.uint8, torch.int64) else random(0, N, P) + 0.5).to(dtype)
    design = Design(features, bias_column(bias, N), torch.linspace(0.0, 3.0, N, dtype=torch.float64))
    chosen = torch.arange(P) if index is None else index
    centred = features.double()[:, chosen] - torch.outer(design.bias_column, design.mean[chosen])
    return design.columns(index, working), centred, design.bias_column, design.row_weights


@pytest.fixture(params=["one block", "many blocks"])
def blocks(request, monkeypatch):
    if request.param == "many blocks":
        monkeypatch.setattr("snn_recon_plugin.convex.columns.BLOCK_ELEMENTS", 5 * P)


@pytest.mark.parametrize("bias", BIASES)
@pytest.mark.parametrize("index", [None, torch.tensor([5, 0, 2])])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.uint8, torch.bool, torch.int64])
@pytest.mark.parametrize("working", [torch.float32, torch.float64])
def test_products_are_the_dense_ones(dtype, working, bias, index, blocks):
    columns, centred, column, weights = columns_of(dtype, bias, index, working)
    close = {"rtol": 1e-10, "atol": 1e-12} if working == torch.float64 else {"rtol": 1e-4, "atol": 1e-5}
    W, b, U, spread = random(1, C, centred.shape[1]), random(2, C), random(3, N, C), random(4, N).abs()
    results = (
        columns.scores(W.to(working), b.to(working)),
        *columns.adjoint(U.to(working)),
        columns.leading_gram(spread.to(working), 1.0),
    )
    expected = (
        centred @ W.T + torch.outer(column, b),
        (U * weights[:, None]).T @ centred,
        (U * weights[:, None]).T @ column,
        (centred * (weights * spread)[:, None]).T @ centred,
    )
    for result, wanted in zip(results, expected, strict=True):
        assert result.dtype == working
        torch.testing.assert_close(result.double(), wanted, **close)


@pytest.mark.parametrize("dtype", [torch.float64, torch.uint8])
def test_some_rows_stand_for_all(dtype):
    columns, centred, column, weights = columns_of(dtype, "vector")
    rows, share = torch.tensor([1, 4, 20]), 0.4
    part = columns.part(rows, share)
    W, b, U = random(1, C, P), random(2, C), random(3, 3, C)
    torch.testing.assert_close(part.scores(W, b), centred[rows] @ W.T + torch.outer(column[rows], b))
    weighted = U * weights[rows, None] / share
    for result, expected in zip(part.adjoint(U), (weighted.T @ centred[rows], weighted.T @ column[rows]), strict=True):
        torch.testing.assert_close(result, expected)


def test_integers_stay_integers_and_floats_are_not_copied():
    assert columns_of(torch.bool)[0].matrix.dtype == torch.bool
    design = Design(random(0, N, P))
    assert design.columns(None, torch.float64).matrix.data_ptr() == design.features.data_ptr()


@pytest.mark.parametrize("dtype", [torch.float64, torch.uint8])
def test_a_gram_of_the_rows_that_carry_the_mass(dtype, blocks):
    """Ten rows carry nearly all: they alone enter, of the columns asked for, and the diagonal is raised by the rest."""
    columns, centred, _, weights = columns_of(dtype, "vector")
    spread = torch.full((N,), 1e-3, dtype=torch.float64)
    spread[3:13] = torch.linspace(1.0, 2.0, 10)
    index = torch.tensor([6, 0, 3, 1])
    heavy = (spread > 0.5).double()
    assert float((weights * spread) @ heavy) > 0.95 * float(weights @ spread)
    chosen = centred[:, index]
    expected = (chosen * (weights * spread * heavy)[:, None]).T @ chosen
    expected.diagonal().mul_(1.05)
    torch.testing.assert_close(columns.leading_gram(spread, 0.95, index), expected, rtol=1e-10, atol=1e-14)


def test_rows_that_weigh_alike_enter_together():
    """As at a kink: none is less than another, so none is left out, whatever the share asked for."""
    columns, centred, _, weights = columns_of(torch.float64)
    spread = torch.zeros(N, dtype=torch.float64)
    spread[5:15] = 1 / weights[5:15]
    expected = centred[5:15].T @ centred[5:15]
    expected.diagonal().mul_(1.5)
    torch.testing.assert_close(columns.leading_gram(spread, 0.5), expected, rtol=1e-10, atol=1e-12)


def test_all_rows_where_most_would_be_needed_anyway():
    columns, centred, _, weights = columns_of(torch.float64)
    flat = torch.ones(N, dtype=torch.float64)
    torch.testing.assert_close(columns.leading_gram(flat, 0.97), (centred * weights[:, None]).T @ centred)


def test_a_gram_without_any_curvature_is_zero():
    columns, *_ = columns_of(torch.float64)
    assert not columns.leading_gram(torch.zeros(N, dtype=torch.float64), 0.97).any()
