"""Outputs that see different features: products, solutions and certificates against those of each output's own features."""

import numpy as np
import pytest
import torch

from snn_recon_plugin.convex import Features, FilteredFeatures, Problem, solve
from snn_recon_plugin.errors import DataError, OptionError

from .helpers import LOSS_FORMULAS, SecondOpinion, follow, labels, random

N, K, P, C = 60, 3, 6, 4
FILTERS = torch.tensor([0, 2, 1, 2])
GAINS = torch.tensor([[1.0, 6.0, 2.5, 6.0]])
COLUMNS = {"none": None, "gains": GAINS, "rows": GAINS * (1 + torch.arange(N)[:, None] % 3 * torch.tensor([[0.5, 0.2, 0.9, 0.2]]))}
every_column = pytest.mark.parametrize("bias", COLUMNS)  # the last one as for scores at several time steps


def matrices(dtype=torch.float64):
    """One filter's features are a few times those of another, as leaks from 0 to 0.99 make them."""
    shared = random(0, N, 1, P).abs()
    return (shared * torch.tensor([1.0, 3.0, 8.0], dtype=torch.float64)[:, None] + 0.3 * random(1, N, K, P).abs()).to(dtype)


def both(bias="gains", dtype=torch.float64, weights=None):
    """Filtered features, and those of each output alone."""
    column = COLUMNS[bias]
    own = [None] * C if column is None else column.expand(N, C).T
    alone = [Features(matrices(dtype)[:, k], own[c], weights) for c, k in enumerate(FILTERS.tolist())]
    return FilteredFeatures(matrices(dtype), FILTERS, column, weights), alone


def problem(loss, penalty, strength=1e-2, bias="gains"):
    return Problem(both(bias)[0], labels(0, N, C), loss=loss, penalty=penalty, strength=strength, num_outputs=C)


class WrittenOut(SecondOpinion):
    """Second opinion with features and a bias column for each output."""

    def __init__(self, problem, bias):
        first = both(bias)[1][0]
        super().__init__(
            Problem(first, labels(0, N, C), loss=problem.loss, penalty=problem.penalty, strength=problem.strength), labels(0, N, C)
        )
        column = COLUMNS[bias]
        self.columns = np.zeros((N, C)) if column is None else column.expand(N, C).numpy()
        self.own = [matrices().numpy()[:, k] for k in FILTERS.tolist()]

    def scores(self, weight, bias):
        return np.stack([self.own[c] @ weight[c] for c in range(C)], 1) + self.columns * bias

    def slopes(self, weight, bias):
        rows = self.loss.gradient(self.scores(weight, bias), self.targets) / N
        return np.stack([rows[:, c] @ self.own[c] for c in range(C)]), (rows * self.columns).sum(0)


@every_column
@pytest.mark.parametrize("index", [None, torch.tensor([1, 4])])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_products_are_those_of_each_output_alone(dtype, index, bias):
    """Of all features as given, of some columns in a precision, and of a part of the rows that stands for all."""
    filtered, alone = both(bias, weights=torch.linspace(0.0, 3.0, N, dtype=torch.float64))
    rows, width = torch.tensor([5, 0, 33]), P if index is None else len(index)
    W, b, U = random(1, C, P), random(2, C), random(3, N, C)
    torch.testing.assert_close(filtered.scores_of(matrices(), COLUMNS[bias], W, b), filtered.scores(W, b))
    for made, n, working in (
        (lambda features: features, N, torch.float64),
        (lambda features: features.columns(index, dtype), N, dtype),
        (lambda features: features.columns(None, dtype).part(rows, 0.25), 3, dtype),
    ):
        some, own = made(filtered), [made(each) for each in alone]
        weight, shift, dual = W[:, : some.mean.shape[1]].to(working), b.to(working), U[:n].to(working)
        for c, one in enumerate(own):
            only = slice(c, c + 1)
            for result, expected in (
                (some.mean[only], one.mean),
                (some.variance[only], one.variance),
                (some.scores(weight, shift)[:, only], one.scores(weight[only], shift[only])),
                (some.centred_scores(weight, shift)[:, only], one.centred_scores(weight[only], shift[only])),
                (some.adjoint(dual)[0][only], one.adjoint(dual[:, only])[0]),
                (some.adjoint(dual)[1][only], one.adjoint(dual[:, only])[1]),
                (some.second_moments(dual.abs())[only], one.second_moments(dual[:, only].abs())),
            ):
                torch.testing.assert_close(result, expected)
        spread = dual[:, 0].abs()
        torch.testing.assert_close(some.gram(spread), torch.stack([each.gram(spread) for each in own]).mean(0))
        moments = torch.stack([each.second_moments(spread[:, None]) for each in own]).mean(0)
        torch.testing.assert_close(some.second_moments(spread[:, None]), moments)
    assert filtered.columns(index, dtype).mean.shape == (C, width)


@every_column
@pytest.mark.parametrize("penalty", ["ridge", "group_l1"])
@pytest.mark.parametrize("loss", ["cross_entropy", "squared_hinge", "squared"])
def test_the_certificate_is_that_of_the_program_written_out(loss, penalty, bias):
    made = problem(loss, penalty, bias=bias)
    solution, second = solve(made, tol=1e-7), WrittenOut(made, bias)
    assert solution.certificate.reached
    weight, shift = solution.weight.numpy(), solution.bias.numpy()
    assert np.abs(second.slopes(weight, shift)[1]).max() < 1e-8
    assert solution.certificate.primal == pytest.approx(second.objective(weight, shift), rel=1e-10)
    assert -1e-10 <= solution.certificate.primal - second.dual(weight, shift) <= 2e-7 * second.zero_loss


def test_a_loss_with_kinks_is_refused():
    with pytest.raises(OptionError, match="separate temporal filters") as caught:
        solve(problem("hinge", "ridge", 0.1))
    assert "a smooth loss" in caught.value.fix


def test_a_path_chooses_by_held_out_samples_of_all_filters():
    made, formulas = problem("squared_hinge", "ridge"), LOSS_FORMULAS["squared_hinge"]
    point = follow(made, matrices(), labels(0, N, C), bias_column=GAINS).chosen
    second = WrittenOut(made, "gains")
    scores = second.scores(point.solution.weight.numpy(), point.solution.bias.numpy())
    assert point.heldout_loss == pytest.approx(formulas.value(scores, second.targets).mean(), rel=1e-10)


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
    with pytest.raises(DataError, match="bias column of shape" if isinstance(bias, torch.Tensor) else "features of shape"):
        FilteredFeatures(torch.rand(shape), torch.tensor(filters), bias)
