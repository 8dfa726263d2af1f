import math
from itertools import pairwise

import pytest
import torch

from snn_recon_plugin.convex import Features, Problem, Squared, strengths_below
from snn_recon_plugin.errors import DataError, OptionError

from .helpers import BIASES, PAIRS, bias_column, follow, labels, small_problem, spikes

N, M, P = 40, 25, 8
HELD, HELD_LABELS = spikes(100, M, P), labels(100, M, 3)


def fitted(loss="cross_entropy", penalty="group_l1", bias="one"):
    return small_problem(loss, penalty, n=N, p=P, bias=bias)


def informative(seed, n):
    """Spikes, of which the first three columns mostly give the class."""
    classes = labels(seed, n, 3)
    features = spikes(seed, n, P)
    features[:, :3] = torch.nn.functional.one_hot(classes, 3) ^ spikes(seed + 1, n, 3, rate=0.15)
    return features, classes


class Scripted(Squared):
    """Squared loss whose k-th mean over four held-out samples is the k-th of a list, with a standard error of 0.1."""

    def __init__(self, losses):
        self.left = list(losses)

    def value(self, scores, targets):
        spread = 0.1 * 3**0.5 * torch.tensor([-1.0, -1.0, 1.0, 1.0], dtype=torch.float64)
        return self.left.pop(0) + spread if len(scores) == len(spread) else super().value(scores, targets)


@pytest.mark.parametrize(("loss", "penalty", "bias"), [(*pair, BIASES[k % 3]) for k, pair in enumerate([*PAIRS, ("hinge", "l1")])])
def test_the_choice_is_the_minimum_on_held_out_samples(loss, penalty, bias):
    problem, column, seen = fitted(loss, penalty, bias), bias_column(bias, M), []
    strengths = None if loss == "cross_entropy" else strengths_below(problem, 4)
    found = follow(problem, HELD, HELD_LABELS, strengths=strengths, bias_column=column, progress=seen.append)
    assert tuple(seen) == found.points
    wanted = strengths_below(problem) if strengths is None else strengths
    assert [point.strength for point in found.points] == wanted[: len(found.points)] == sorted(wanted, reverse=True)[: len(seen)]
    prepared, column = problem.loss.prepare(HELD_LABELS, 3), torch.as_tensor(0.0 if column is None else column).expand(M)
    for point in found.points:
        scores = HELD.double() @ point.solution.weight.T + torch.outer(column.double(), point.solution.bias)
        assert point.heldout_loss == pytest.approx(float(problem.loss.value(scores, prepared).mean()), rel=1e-12)
        assert point.heldout_accuracy == pytest.approx(float((scores.argmax(1) == HELD_LABELS).double().mean()))
        assert point.active == int(point.solution.weight.any(0).sum())
        assert point.solution.certificate.relative_gap <= point.solution.certificate.tol <= 1e-3
    losses = [point.heldout_loss for point in found.points]
    assert found.best == losses.index(min(losses))
    assert found.chosen is found.points[found.best]


def test_every_point_starts_from_those_before():
    problem = fitted()
    found = follow(problem, HELD, HELD_LABELS, tol=1e-3, solver="newton")
    assert len(found.points) >= 3
    for k, point in enumerate(found.points[1:], start=1):
        here, before = problem.with_strength(point.strength), found.points[k - 1].solution
        assert point.solution.statistics.trace[0].objective == here.evaluate(before.weight, before.bias).objective
        assert (point.solution.certificate.tol, point.solution.statistics.solver) == (1e-3, "newton")
    assert found.points[0].solution.statistics.step > 0


@pytest.mark.parametrize(("penalty", "first", "last"), [("group_l1", 0.5, 1e-4), ("l1", 0.5, 1e-4), ("ridge", 0.02, 1e-6)])
def test_default_strengths_fall_in_equal_ratios(penalty, first, last):
    problem = fitted(penalty=penalty)
    strengths = strengths_below(problem)
    assert len(strengths) == 12
    assert strengths[0] == pytest.approx(first * problem.critical_strength())
    assert strengths[-1] == pytest.approx(last * problem.critical_strength())
    ratios = [later / earlier for earlier, later in pairwise(strengths)]
    assert ratios == pytest.approx([ratios[0]] * 11)
    assert strengths_below(problem, count=1) == pytest.approx(strengths[:1])


@pytest.mark.parametrize(("rows", "weighted"), [(1, False), (5, True)])
def test_the_standard_error_of_a_held_out_loss(rows, weighted):
    """The error is over samples, each with all of its rows; a weight of 2 counts twice in the mean."""
    (features, classes), count = informative(0, 8 * N), 8 * M
    problem, (held, targets) = Problem(Features(features), classes), informative(100, count)
    weights = torch.arange(1.0, count / rows + 1).repeat_interleave(rows) if weighted else None
    options = {"strengths": strengths_below(problem, 9), "rows_per_sample": rows, "weights": weights, "patience": math.inf}
    found = follow(problem, held, targets, **options)
    assert len(found.points) == 9
    best = found.points[found.best]
    losses = problem.loss.value(held.double() @ best.solution.weight.T + best.solution.bias, targets)
    counts = torch.ones(count) if weights is None else weights
    mean = float((counts * losses).sum() / counts.sum())
    assert best.heldout_loss == pytest.approx(mean, rel=1e-12)
    apart, samples = (counts * (losses - mean)).reshape(-1, rows).sum(1), count // rows
    error = float(apart.square().sum() * samples / (samples - 1)) ** 0.5 / float(counts.sum())
    assert best.heldout_error == pytest.approx(error, rel=1e-9)


def test_a_single_held_out_sample_has_no_error_and_the_best_is_taken():
    found = follow(fitted(), HELD[:1], HELD_LABELS[:1], strengths=[0.05, 0.02])
    assert math.isnan(found.chosen.heldout_error)
    assert found.best == min(range(2), key=lambda k: found.points[k].heldout_loss)
    assert found.chosen is found.points[found.best]


@pytest.mark.parametrize(
    ("losses", "count", "best"),
    [
        ([3.0, 2.0, 1.0, 1.1, 1.2, 0.1], 5, 2),  # it stops after two rises
        ([3.0, 3.1, 2.0, 2.1, 1.0, 0.9], 6, 5),  # one rise is forgiven
        ([1.0, 1.2, 1.1, 0.5], 3, 0),  # a fall that does not make up for the rise before is no gain
        ([3.0, 1.0, 0.995, 0.991, 0.1], 4, 1),  # a gain below a tenth of the standard error counts as none
        ([3.0, 1.0, 0.993, 0.986, 0.979, 0.972], 6, 5),  # that of two strengths together counts
        ([2.0, math.nan, 1.0], 3, 2),  # a point that is not finite is never chosen
        ([math.nan, 2.0, 1.0], 3, 2),
        ([3.0, 2.0, 1.0], 3, 2),  # the last strength may be the best
        ([3.0], 1, 0),
    ],
)
def test_where_a_path_ends_and_which_point_is_best(losses, count, best):
    problem = Problem(Features(torch.ones(2, 1), None), torch.zeros(2, 1), loss=Scripted(losses))
    strengths = [1.0 / (k + 1) for k in range(len(losses))]
    found = follow(problem, torch.ones(4, 1), torch.zeros(4, 1), strengths=strengths)
    assert (len(found.points), found.best) == (count, best)


@pytest.mark.parametrize(
    ("options", "error", "found"),
    [
        ({"targets": HELD_LABELS + 1}, DataError, "labels from"),
        ({"targets": HELD_LABELS[:-1]}, DataError, f"{M - 1} held-out targets"),
        ({"weights": torch.ones(1)}, DataError, f"for {M} held-out rows"),
        ({"rows_per_sample": 0}, DataError, f"for {M} held-out rows"),
        ({"rows_per_sample": 4}, DataError, f"for {M} held-out rows"),
        ({"features": torch.ones(M, P - 1)}, DataError, r"features of shape \(25, 7\)"),
        ({"bias_column": torch.ones(M - 1)}, DataError, r"bias_column of shape \(24,\)"),
        ({"features": torch.full((M, P), torch.nan)}, DataError, "held-out features that are NaN or infinite"),
        ({"features": torch.full((M, P), torch.inf)}, DataError, "held-out features that are NaN or infinite"),
        ({"strengths": [-1.0]}, OptionError, "strength=-1"),
        ({"strengths": []}, OptionError, "strengths="),
        ({"solver": "nope"}, OptionError, "solver="),
    ],
)
def test_bad_held_out_samples_and_options_are_refused_before_the_first_solve(options, error, found):
    seen = []
    with pytest.raises(error, match=found):
        follow(fitted(), **{"features": HELD, "targets": HELD_LABELS, "progress": seen.append, **options})
    assert not seen


@pytest.mark.parametrize("penalty", ["group_l1", "ridge"])
@pytest.mark.parametrize("loss", ["cross_entropy", "squared"])
def test_features_without_information_end_in_zero_weights(loss, penalty):
    """Their critical strength is zero or rounding."""
    problem = Problem(Features(torch.ones(N, P)), labels(0, N, 3), loss=loss, penalty=penalty)
    assert all(later < earlier for earlier, later in pairwise(strengths_below(problem)))
    found = follow(problem, HELD, HELD_LABELS)
    assert found.chosen.solution.certificate.reached
    assert not found.chosen.solution.weight.any()


def test_a_path_ends_where_its_work_does():
    problem, held, targets = small_problem(n=200, p=60), spikes(9, 50, 60), labels(9, 50, 3)
    whole = follow(problem, held, targets, patience=math.inf)
    total = sum(point.solution.statistics.products for point in whole.points)
    short = follow(problem, held, targets, patience=math.inf, max_products=0.5 * total)
    assert 1 <= len(short.points) < len(whole.points)
    assert torch.equal(short.points[0].solution.weight, whole.points[0].solution.weight)
    tols = [point.solution.certificate.tol for point in whole.points]
    assert tols[0] == 1e-4
    assert all(1e-4 <= tol <= 1e-3 for tol in tols)
    assert max(tols) > 1e-4  # the default follows the error of the held-out loss, which is large for fifty samples
