import pytest
import torch

from snn_recon_plugin.convex import Features
from snn_recon_plugin.errors import DataError

from .helpers import BIASES, bias_column, random, spikes

DTYPES = [torch.bool, torch.uint8, torch.int64, torch.float32, torch.float64]
N, P, C = 23, 7, 3
SIZES = {"one block": (N, P), "many blocks": (2500, 450)}  # a block holds a million elements
ROWS = {"one block": [1, 4, 20], "many blocks": [1, 2400, 7]}


def parts(dtype=torch.float64, bias="one", weighted=True, n=N, p=P):
    """Features, and their dense float64 pieces: matrix, bias column, row weights, centre."""
    integer = not dtype.is_floating_point
    matrix = (spikes(0, n, p) if integer else random(0, n, p) + 0.5).to(dtype)
    weights = torch.linspace(0.0, 3.0, n, dtype=torch.float64) if weighted else None
    column = bias_column(bias, n)
    features = Features(matrix, column, weights)
    column = torch.zeros(n, dtype=torch.float64) if column is None else torch.as_tensor(column).double().expand(n)
    weights = torch.ones(n, dtype=torch.float64) if weights is None else weights
    weights = weights / weights.sum()
    centre = torch.zeros(p, dtype=torch.float64)
    if bias != "none":
        centre = (matrix.double() * (weights * column)[:, None]).sum(0) / (weights * column * column).sum()
    return features, matrix.double(), column, weights, centre


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bias", BIASES)
@pytest.mark.parametrize(("weighted", "size"), [(False, "one block"), (True, "one block"), (True, "many blocks")])
def test_products_are_the_dense_ones(dtype, bias, weighted, size):
    n, p = SIZES[size]
    features, dense, column, weights, centre = parts(dtype, bias, weighted, n, p)
    W, b, U = random(1, C, p), random(2, C), random(3, n, C)
    few = torch.where(torch.arange(p) == 4, W, 0.0)
    weighted_rows, centred = U * weights[:, None], dense - torch.outer(column, centre)
    results = (
        (features.mean, centre[None]),
        (features.variance, (weights @ centred.square())[None]),
        (features.scores(W, b), dense @ W.T + torch.outer(column, b)),
        (features.scores(few, b), dense @ few.T + torch.outer(column, b)),
        (features.scores(0 * W, b), torch.outer(column, b)),
        (features.adjoint(U)[0], weighted_rows.T @ centred),
        (features.adjoint(U)[1], weighted_rows.T @ column),
        (features.row_mean(features.bias_column * U), weighted_rows.T @ column),
        (features.second_moments(U.abs()), weighted_rows.abs().T @ centred.square()),
    )
    for result, expected in results:
        assert result.dtype == torch.float64
        torch.testing.assert_close(result, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("bias", BIASES)
@pytest.mark.parametrize("index", [None, torch.tensor([5, 0, 2])])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("working", [torch.float32, torch.float64])
def test_columns_have_the_dense_products_in_their_precision(dtype, working, bias, index):
    features, dense, column, weights, centre = parts(dtype, bias)
    chosen = torch.arange(P) if index is None else index
    columns, centred = features.columns(index, working), (dense - torch.outer(column, centre))[:, chosen]
    close = {"rtol": 1e-10, "atol": 1e-12} if working == torch.float64 else {"rtol": 1e-4, "atol": 1e-5}
    W, b, U, spread = random(1, C, len(chosen)), random(2, C), random(3, N, C), random(4, N).abs()
    results = (
        columns.centred_scores(W.to(working), b.to(working)),
        *columns.adjoint(U.to(working)),
        columns.gram(spread.to(working)),
        columns.row_mean(columns.bias_column.square() * U.abs().to(working)),
    )
    expected = (
        centred @ W.T + torch.outer(column, b),
        (U * weights[:, None]).T @ centred,
        (U * weights[:, None]).T @ column,
        (centred * (weights * spread)[:, None]).T @ centred,
        (weights * column.square()) @ U.abs(),
    )
    for result, wanted in zip(results, expected, strict=True):
        assert result.dtype == working
        torch.testing.assert_close(result.double(), wanted, **close)


def test_sizes_of_the_bias_column_are_those_of_the_rows():
    column = torch.tensor([1.0, -2.0, 0.5, 0.0])
    features = Features(random(0, 4, P), column)
    mean, square, largest = features.bias_sizes
    assert float(mean) == pytest.approx(3.5 / 4)
    assert float(square) == pytest.approx(5.25 / 4)
    assert largest == 2.0
    mean, square, largest = features.part(torch.tensor([2, 3]), 0.5).bias_sizes  # a part that stands for all
    assert (float(mean), float(square), largest) == pytest.approx((0.25, 0.125, 0.5))


@pytest.mark.parametrize("working", [torch.float32, torch.float64])
def test_sums_over_many_rows_are_made_part_by_part(working):
    n, outputs = 3_000, 100
    columns = Features(random(0, n, P).float(), bias_column("vector", n)).columns(None, working)
    U, largest = random(3, n, outputs).to(working), 0

    def make(rows):
        nonlocal largest
        largest = max(largest, len(U[rows]))
        return U[rows]

    close = {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(columns.row_part_of(make, outputs), columns.row_mean(U), **close)
    torch.testing.assert_close(columns.adjoint_of(make, outputs), columns.adjoint(U), rtol=0, atol=0)
    assert largest < n


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


@pytest.mark.parametrize("bias", BIASES)
def test_weight_two_is_a_row_twice(bias):
    matrix, column = random(0, N, P), bias_column(bias, N)
    counts = torch.arange(N) % 3  # zero, one and two times
    weighted = Features(matrix.clone(), column, counts)
    repeated = Features(matrix.repeat_interleave(counts, 0), column if bias != "vector" else column.repeat_interleave(counts))
    U = random(1, N, C)
    torch.testing.assert_close(weighted.mean, repeated.mean)
    torch.testing.assert_close(weighted.variance, repeated.variance)
    torch.testing.assert_close(weighted.adjoint(U), repeated.adjoint(U.repeat_interleave(counts, 0)))
    assert float(weighted.row_weights.sum()) == pytest.approx(1)
    torch.testing.assert_close(Features(matrix, column, 8 * counts).row_weights, weighted.row_weights)


@pytest.mark.parametrize("bias", BIASES)
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
@pytest.mark.parametrize("size", SIZES)
def test_a_part_of_the_rows_represents_all(dtype, size):
    n, p = SIZES[size]
    features, dense, column, weights, centre = parts(dtype, "vector", n=n, p=p)
    rows, share, centred = torch.tensor(ROWS[size]), 0.4, dense - torch.outer(column, centre)
    features.columns(None, torch.float64)  # columns of all rows are no columns of a part
    part = features.part(rows, share).columns(None, torch.float64)
    W, b, U = random(1, C, p), random(2, C), random(3, 3, C)
    torch.testing.assert_close(part.centred_scores(W, b), centred[rows] @ W.T + torch.outer(column[rows], b))
    weighted = U * weights[rows, None] / share
    torch.testing.assert_close(part.adjoint(U), (weighted.T @ centred[rows], weighted.T @ column[rows]))


@pytest.mark.parametrize("dtype", [torch.float64, torch.uint8])
def test_some_centred_rows_and_their_gram_matrix(dtype):
    features, dense, column, weights, centre = parts(dtype, "vector")
    rows, index, spread = torch.tensor([3, 22, 4]), torch.tensor([6, 0, 3, 1]), random(4, N).abs()
    chosen = (dense - torch.outer(column, centre))[rows]
    torch.testing.assert_close(features.centred_rows(rows), chosen, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(features.centred_rows(rows, index), chosen[:, index], rtol=1e-12, atol=1e-14)
    expected = (chosen * (weights * spread)[rows, None]).T @ chosen
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
