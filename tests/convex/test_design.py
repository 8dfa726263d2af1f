import pytest
import torch

from snn_recon_plugin.convex import Design
from snn_recon_plugin.errors import DataError

from .helpers import BIASES, bias_column, random, spikes

DTYPES = [torch.bool, torch.uint8, torch.float32, torch.float64]
N, P, C = 23, 7, 3


def parts(dtype=torch.float64, bias="one", weighted=False, seed=0):
    """A design, and its dense float64 pieces: features, column, weights, centre."""
    raw = spikes(seed, N, P) if dtype in (torch.bool, torch.uint8) else random(seed, N, P) + 0.5
    features = raw.to(dtype)
    weights = torch.linspace(0.0, 3.0, N, dtype=torch.float64) if weighted else None
    dense = features.double().clone()
    design = Design(features, bias_column(bias, N), weights)
    column = bias_column(bias, N)
    column = torch.zeros(N, dtype=torch.float64) if column is None else torch.as_tensor(column).double().expand(N)
    weight = torch.ones(N, dtype=torch.float64) if weights is None else weights
    weight = weight / weight.sum()
    centre = torch.zeros(P, dtype=torch.float64)
    if bias != "none":
        centre = (dense * (weight * column)[:, None]).sum(0) / (weight * column * column).sum()
    return design, dense, column, weight, centre


@pytest.fixture(params=["one block", "many blocks"])
def blocks(request, monkeypatch):
    if request.param == "many blocks":
        for module in ("design", "columns"):
            monkeypatch.setattr(f"snn_recon_plugin.convex.{module}.BLOCK_ELEMENTS", 5 * P)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bias", BIASES)
@pytest.mark.parametrize("weighted", [False, True])
def test_products_are_the_dense_ones(dtype, bias, weighted, blocks):
    design, dense, column, weights, centre = parts(dtype, bias, weighted)
    W, b, U = random(1, C, P), random(2, C), random(3, N, C)
    torch.testing.assert_close(design.mean, centre, rtol=1e-12, atol=1e-14)
    centred = dense - torch.outer(column, centre)
    torch.testing.assert_close(design.variance, weights @ centred.square(), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(design.scores(W, b), dense @ W.T + torch.outer(column, b), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(design.adjoint(U), (U * weights[:, None]).T @ centred, rtol=1e-12, atol=1e-12)
    assert design.scores(W, b).dtype == design.adjoint(U).dtype == torch.float64


@pytest.mark.parametrize("dtype", DTYPES)
def test_scores_of_sparse_weights(dtype, blocks):
    design, dense, column, _, _ = parts(dtype)
    W, b = torch.zeros(C, P, dtype=torch.float64), random(2, C)
    torch.testing.assert_close(design.scores(W, b), torch.outer(column, b))
    W[:, 4] = random(1, C)
    torch.testing.assert_close(design.scores(W, b), dense @ W.T + torch.outer(column, b), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_users_features_are_left_as_they_are(dtype, blocks):
    features = (spikes(0, N, P) if dtype in (torch.bool, torch.uint8) else random(0, N, P)).to(dtype)
    before = features.clone()
    design = Design(features, bias_column("vector", N))
    columns = design.columns(None, torch.float64)
    columns.leading_gram(torch.ones(N, dtype=torch.float64), 1.0)
    design.scores(random(1, C, P), random(2, C))
    design.adjoint(random(3, N, C))
    assert torch.equal(features, before)
    assert design.features.dtype == dtype


def test_scores_and_adjoint_are_transposes():
    design, *_ = parts(torch.uint8, "vector", weighted=True)
    W, U = random(1, C, P), random(2, N, C)
    shift = -(W @ design.mean)  # scores of centred features
    left = (design.scores(W, shift) * U * design.row_weights[:, None]).sum()
    torch.testing.assert_close(left, (W * design.adjoint(U)).sum())


@pytest.mark.parametrize("bias", BIASES)
def test_weight_two_is_a_row_twice(bias):
    features, column = random(0, N, P), bias_column(bias, N)
    counts = torch.arange(N) % 3  # zero, one and two times
    weighted = Design(features.clone(), column, counts)
    repeated = features.repeat_interleave(counts, 0)
    doubled = Design(repeated, column if bias != "vector" else column.repeat_interleave(counts))
    U = random(1, N, C)
    torch.testing.assert_close(weighted.mean, doubled.mean)
    torch.testing.assert_close(weighted.variance, doubled.variance)
    torch.testing.assert_close(weighted.adjoint(U), doubled.adjoint(U.repeat_interleave(counts, 0)))
    assert float(weighted.row_weights.sum()) == pytest.approx(1)


def test_only_ratios_of_weights_matter():
    features = random(0, N, P)
    one, other = (Design(features.clone(), 1.0, torch.arange(1, N + 1) * factor) for factor in (1, 8))
    torch.testing.assert_close(one.row_weights, other.row_weights)
    torch.testing.assert_close(Design(features.clone(), 1.0, torch.tensor(5.0)).row_weights, Design(features.clone()).row_weights)


@pytest.mark.parametrize("bias", BIASES)
def test_columns_that_carry_no_information_have_variance_exactly_zero(bias):
    features = random(0, N, 6)
    features[:, 0] = 0
    column = bias_column(bias, N)
    spanned = torch.zeros(N) if column is None else torch.as_tensor(column).expand(N)
    for j, size in ((1, 0.1), (2, 1e9 / 3), (3, 1e-9 / 3)):
        features[:, j] = size * spanned
    features[:, 4] *= 1e-8
    variance = Design(features, column).variance
    assert (variance > 0).tolist() == [False, False, False, False, True, True]


def test_a_bias_column_of_zeros_centres_nothing():
    features = random(0, N, P)
    design = Design(features.clone(), 0.0)
    assert not design.mean.any()
    torch.testing.assert_close(design.scores(random(1, C, P), random(2, C)), features @ random(1, C, P).T)


def test_rows():
    features = random(0, N, P)
    index = torch.tensor([3, 8, 8, 0])
    for bias in BIASES:
        weights = torch.linspace(1, 2, N, dtype=torch.float64)
        some = Design(features.clone(), bias_column(bias, N), weights).rows(index)
        column = bias_column(bias, N)
        direct = Design(features[index].clone(), column[index] if bias == "vector" else column, weights[index])
        assert some.has_bias == direct.has_bias
        assert torch.equal(some.features, direct.features)
        torch.testing.assert_close(some.row_weights, direct.row_weights)
        torch.testing.assert_close(some.bias_column, direct.bias_column)
        torch.testing.assert_close(some.mean, direct.mean)


def test_features_need_not_be_contiguous():
    features = random(0, P, N).T
    assert not features.is_contiguous()
    expected = features.clone() @ random(1, C, P).T
    torch.testing.assert_close(Design(features).scores(random(1, C, P), torch.zeros(C, dtype=torch.float64)), expected)


@pytest.mark.parametrize(
    ("features", "found"),
    [
        (torch.zeros(3), r"features of shape \(3,\)"),
        (torch.zeros(3, 2, 2), r"features of shape \(3, 2, 2\)"),
        (torch.zeros(0, 2), r"features of shape \(0, 2\)"),
        (torch.zeros(2, 0), r"features of shape \(2, 0\)"),
        (torch.zeros(2, 2, dtype=torch.complex64), "complex features"),
        (torch.tensor([[0.0, torch.nan], [torch.inf, 1.0]]), "2 features that are NaN or infinite"),
        (torch.tensor([[-torch.inf]], dtype=torch.float16), "1 features that are NaN or infinite"),
    ],
)
def test_bad_features(features, found):
    with pytest.raises(DataError, match=found) as caught:
        Design(features)
    assert caught.value.needed
    assert caught.value.fix


def test_large_features_are_finite():
    """Ones that only add up to infinity."""
    features = torch.full((4, 2), torch.finfo(torch.float32).max)
    assert torch.equal(Design(features).mean, features[0].double())


@pytest.mark.parametrize("column", [torch.ones(N + 1), torch.ones(N, 1), torch.nan, torch.full((N,), torch.inf)])
def test_bad_bias_columns(column):
    with pytest.raises(DataError, match="bias_column of shape") as caught:
        Design(spikes(0, N, P), column)
    assert str(N) in caught.value.needed


@pytest.mark.parametrize(
    ("weights", "found"),
    [
        (torch.ones(N - 1), "row_weights of shape"),
        (torch.full((N,), torch.nan), "row_weights of shape"),
        (torch.linspace(-1, 1, N), "weights below zero"),
        (torch.zeros(N), "all zero"),
    ],
)
def test_bad_row_weights(weights, found):
    with pytest.raises(DataError, match=found):
        Design(spikes(0, N, P), 1.0, weights)


def test_the_design_of_some_features_takes_over_what_is_known_of_them():
    design, *_ = parts(bias="vector", weighted=True)
    index = torch.tensor([4, 1])
    some = design.of_features(index)
    fresh = Design(design.features[:, index], bias_column("vector", N), torch.linspace(0.0, 3.0, N, dtype=torch.float64))
    assert some.num_features == 2
    assert design.num_features == P
    for name in ("features", "mean", "variance", "bias_column", "row_weights"):
        torch.testing.assert_close(getattr(some, name), getattr(fresh, name))
