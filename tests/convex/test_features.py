from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from snn_recon_plugin.convex import Features
from snn_recon_plugin.errors import DataError

from .helpers import bias_column, every_bias, random, spikes

DTYPES = [torch.bool, torch.uint8, torch.int64, torch.float32, torch.float64]
N, P, C = 23, 7, 3
SIZES = {"one block": (N, P), "many blocks": (2500, 450)}  # a block holds a million elements
every_size = pytest.mark.parametrize("size", SIZES)


@dataclass(frozen=True)
class Dense:
    """Features written out in float64."""

    matrix: Tensor
    column: Tensor
    weights: Tensor
    centre: Tensor

    def check(self, features, rows=slice(None), share=1.0, index=slice(None)):
        """Compare all products, of some rows that stand for all, and of some columns."""
        matrix, column, weights = self.matrix[rows][:, index], self.column[rows], self.weights[rows] / share
        centre, working = self.centre[index], features.dtype
        centred = matrix - torch.outer(column, centre)
        n, p = matrix.shape
        W, b, U, spread = random(1, C, p), random(2, C), random(3, n, C), random(4, n).abs()
        few, weighted = torch.where(torch.arange(p) == 2, W, 0.0), U * weights[:, None]
        whole = self.matrix[:, index] - torch.outer(self.column, centre)
        shift = torch.outer(column, b)
        w, f, c, u = (each.to(working) for each in (W, few, b, U))
        for result, expected in (
            (features.mean, centre[None]),
            (features.variance, (self.weights @ whole.square())[None]),
            (features.scores(w, c), matrix @ W.T + shift),
            (features.scores(f, c), matrix @ few.T + shift),
            (features.scores(0 * w, c), shift),
            (features.centred_scores(w, c), centred @ W.T + shift),
            (features.adjoint(u)[0], weighted.T @ centred),
            (features.adjoint(u)[1], weighted.T @ column),
            (features.row_mean(features.bias_column * u), weighted.T @ column),
            (features.second_moments(u.abs()), weighted.abs().T @ centred.square()),
            (features.gram(spread.to(working)), (centred * (weights * spread)[:, None]).T @ centred),
        ):
            assert result.dtype == (torch.float64 if result is features.variance else working)
            close = {"rtol": 1e-10, "atol": 1e-12} if working == torch.float64 else {"rtol": 1e-4, "atol": 1e-5}
            torch.testing.assert_close(result.double(), expected, **close)


def parts(dtype=torch.float64, bias="one", weighted=True, size="one block"):
    n, p = SIZES[size]
    matrix = (random(0, n, p) + 0.5 if dtype.is_floating_point else spikes(0, n, p)).to(dtype)
    weights = torch.linspace(0.0, 3.0, n, dtype=torch.float64) if weighted else None
    column = bias_column(bias, n)
    features = Features(matrix, column, weights)
    column = torch.as_tensor(0.0 if column is None else column, dtype=torch.float64).expand(n)
    weights = torch.ones(n, dtype=torch.float64) if weights is None else weights
    weights = weights / weights.sum()
    total = (weights * column * column).sum().clamp_min(1e-300)
    return features, Dense(matrix.double(), column, weights, (matrix.double() * (weights * column)[:, None]).sum(0) / total)


@pytest.mark.parametrize("dtype", DTYPES)
@every_bias
@pytest.mark.parametrize(("weighted", "size"), [(False, "one block"), (True, "one block"), (True, "many blocks")])
def test_products_are_the_dense_ones(dtype, bias, weighted, size):
    features, dense = parts(dtype, bias, weighted, size)
    dense.check(features)


@every_bias
@pytest.mark.parametrize("index", [slice(None), torch.tensor([5, 0, 2])], ids=["all", "some"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("working", [torch.float32, torch.float64])
def test_columns_have_the_dense_products_in_their_precision(dtype, working, bias, index):
    features, dense = parts(dtype, bias)
    columns = features.columns(None if isinstance(index, slice) else index, working)
    assert columns.dtype == working
    dense.check(columns, index=index)


@pytest.mark.parametrize("dtype", [torch.float64, torch.uint8])
@every_size
def test_a_part_of_the_rows_represents_all(dtype, size):
    features, dense = parts(dtype, "vector", size=size)
    rows = torch.tensor([1, len(dense.matrix) - 1, 7])
    features.columns(None, torch.float64)  # columns of all rows are no columns of a part
    dense.check(features.part(rows, 0.4), rows, 0.4)
    dense.check(features.part(rows, 0.4).columns(None, torch.float64), rows, 0.4)


def test_sizes_of_the_bias_column_are_those_of_the_rows():
    features = Features(random(0, 4, P), torch.tensor([1.0, -2.0, 0.5, 0.0]))
    part = features.part(torch.tensor([2, 3]), 0.5)  # stands for all
    for made, sizes in ((features, (3.5 / 4, 5.25 / 4, 2.0)), (part, (0.25, 0.125, 0.5))):
        assert tuple(map(float, made.bias_sizes)) == pytest.approx(sizes)


@pytest.mark.parametrize("working", [torch.float32, torch.float64])
def test_sums_over_many_rows_are_made_part_by_part(working):
    n, outputs, sizes = 3_000, 100, []
    columns, U = (
        Features(random(0, n, P).float(), bias_column("vector", n)).columns(None, working),
        random(3, n, outputs).to(working),
    )

    def make(rows):
        sizes.append(len(U[rows]))
        return U[rows]

    torch.testing.assert_close(columns.row_part_of(make, outputs), columns.row_mean(U), rtol=1e-4, atol=1e-5)
    assert max(sizes) < n


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_users_matrix_is_kept_as_it_is(dtype):
    matrix = (spikes(0, N, P) if not dtype.is_floating_point else random(0, N, P)).to(dtype)
    before = matrix.clone()
    features = Features(matrix, bias_column("vector", N))
    columns = features.columns(None, torch.float64)
    columns.gram(torch.ones(N, dtype=torch.float64))
    features.scores(random(1, C, P), random(2, C))
    features.adjoint(random(3, N, C))
    assert torch.equal(matrix, before)
    assert features.matrix.dtype == dtype
    assert columns.matrix.dtype == (dtype if not dtype.is_floating_point else torch.float64)  # spikes stay spikes
    if dtype == torch.float64:
        assert columns.matrix.data_ptr() == matrix.data_ptr()  # no copy


@every_bias
def test_columns_without_information_have_variance_exactly_zero(bias):
    matrix = random(0, N, 6)
    matrix[:, 0] = 0
    column = bias_column(bias, N)
    spanned = torch.zeros(N) if column is None else torch.as_tensor(column).expand(N)
    for j, size in ((1, 0.1), (2, 1e9 / 3), (3, 1e-9 / 3)):
        matrix[:, j] = size * spanned
    matrix[:, 4] *= 1e-8
    features = Features(matrix, column)
    assert (features.variance[0] > 0).tolist() == [False, False, False, False, True, True]
    assert not features.second_moments(torch.ones(N, 1))[0, :4].any()


def test_a_bias_column_of_zeros_centres_nothing_and_the_matrix_need_not_be_contiguous():
    features = Features(random(0, P, N).T, 0.0)
    assert not features.matrix.is_contiguous()
    assert not features.mean.any()
    expected = features.matrix.clone() @ random(1, C, P).T
    torch.testing.assert_close(features.scores(random(1, C, P), random(2, C)), expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.uint8])
def test_some_centred_rows_and_their_gram_matrix(dtype):
    features, dense = parts(dtype, "vector")
    rows, index, spread = torch.tensor([3, 22, 4]), torch.tensor([6, 0, 3, 1]), random(4, N).abs()
    chosen = (dense.matrix - torch.outer(dense.column, dense.centre))[rows]
    torch.testing.assert_close(features.centred_rows(rows), chosen, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(features.centred_rows(rows, index), chosen[:, index], rtol=1e-12, atol=1e-14)
    expected = (chosen * (dense.weights * spread)[rows, None]).T @ chosen
    torch.testing.assert_close(features.gram(spread, rows), expected, rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(features.gram(spread, rows, index), expected[index][:, index], rtol=1e-10, atol=1e-14)


def test_features_of_a_net_need_no_detach():
    """They require gradients."""
    matrix = random(0, N, P)
    net = Features(matrix.clone().requires_grad_(), torch.ones(N, requires_grad=True), torch.ones(N, requires_grad=True))
    assert torch.equal(net.mean, Features(matrix).mean)
    assert not net.mean.requires_grad
    assert not net.columns(None, torch.float32).matrix.requires_grad


def test_large_features_whose_sum_is_infinite_are_finite():
    matrix = torch.full((4, 2), torch.finfo(torch.float32).max)
    assert torch.equal(Features(matrix).mean[0], matrix[0].double())


@pytest.mark.parametrize(
    ("features", "found"),
    [
        ([torch.zeros(3)], r"features of shape \(3,\)"),
        ([torch.zeros(3, 2, 2)], r"features of shape \(3, 2, 2\)"),
        ([torch.zeros(0, 2)], r"features of shape \(0, 2\)"),
        ([torch.zeros(2, 0)], r"features of shape \(2, 0\)"),
        ([torch.zeros(2, 2, dtype=torch.complex64)], "complex features"),
        ([torch.zeros(2, 2).numpy()], "features of type ndarray"),
        ([torch.eye(2).to_sparse()], "sparse features"),
        ([torch.tensor([[0.0, torch.nan], [torch.inf, 1.0]])], "2 features that are NaN or infinite"),
        ([torch.tensor([[-torch.inf]], dtype=torch.float16)], "1 features that are NaN or infinite"),
        *(([torch.eye(N), bad], f"bias_column of shape.* {N}") for bad in (torch.ones(N + 1), torch.ones(N, 1))),
        *(([torch.eye(N), bad], f"bias_column of shape.* {N}") for bad in (torch.nan, torch.full((N,), torch.inf))),
        *(([torch.eye(N), 1.0, bad], "row_weights of shape") for bad in (torch.ones(N - 1), torch.full((N,), torch.nan))),
        ([torch.eye(N), 1.0, torch.linspace(-1, 1, N)], "weights below zero"),
        ([torch.eye(N), 1.0, torch.zeros(N)], "all zero"),
    ],
)
def test_bad_matrices_bias_columns_and_weights(features, found):
    with pytest.raises(DataError, match=f"(?s){found}") as caught:
        Features(*features)
    assert caught.value.needed
    assert caught.value.fix
