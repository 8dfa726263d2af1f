import functools
import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from snn_recon_plugin.convex import Certificate, Features, Problem, make_loss, solve
from snn_recon_plugin.convex.problem import solve_bias
from snn_recon_plugin.errors import DataError, OptionError

from .helpers import (
    BIASES,
    LOSS_FORMULAS,
    LOSS_NAMES,
    PENALTY_FORMULAS,
    SMOOTH_LOSSES,
    SPARSE_PENALTIES,
    TWO_OUTPUTS,
    SecondOpinion,
    bias_column,
    labels,
    pairs_with_bias,
    quick,
    random,
    small_problem,
    smooth_loss,
    spikes,
)

# Every loss with every penalty, the kinds of bias taking turns.
KNOWN = [(loss, penalty, BIASES[k % 3]) for k, (loss, penalty) in enumerate(itertools.product(LOSS_FORMULAS, PENALTY_FORMULAS))]

EYE = Features(torch.eye(3))
# Random weights: any scale from hidden noise to a trained net's, dense or with most neurons unused.
points = st.tuples(st.integers(0, 2**16), st.floats(-4, 2), st.booleans())
cached = functools.cache(lambda loss, penalty, bias: small_problem(loss, penalty, bias=bias))


def weights_of(point):
    seed, exponent, sparse = point
    weight = random(seed, 3, 8, scale=10.0**exponent)
    if sparse:
        weight[:, : 1 + seed % 8] = 0
    return weight, random(seed + 1, 3)


@pytest.mark.parametrize(("loss", "penalty", "bias"), KNOWN)
@settings(quick, max_examples=6)
@given(point=points, other=points)
def test_a_dual_point_bounds_the_objective_of_every_point(loss, penalty, bias, point, other):
    problem = cached(loss, penalty, bias)
    evaluation, certificate = problem.evaluate(*weights_of(point)), problem.certify(*weights_of(point), 1e-6)
    for primal in (evaluation.objective, certificate.primal, problem.objective(*weights_of(other))):
        assert evaluation.dual <= primal + 1e-12 * max(1.0, abs(primal))
    assert certificate.gap == certificate.primal - certificate.dual
    assert certificate.primal >= evaluation.objective - 1e-12  # the given bias is no better than the exact one
    second = SecondOpinion(problem, labels(0, 30, 3))
    assert problem.zero_loss == pytest.approx(second.zero_loss, rel=1e-12)
    weight, shift = evaluation.weight.numpy(), evaluation.bias.numpy()
    assert evaluation.objective == pytest.approx(second.objective(weight, shift), rel=1e-11)
    assert certificate.primal == pytest.approx(second.objective(weight, weights_of(point)[1].numpy()), rel=1e-11)
    if problem.loss.smooth and bias != "none":
        assert np.abs(second.slopes(weight, shift)[1]).max() < 1e-10  # else the bound would be invalid


@pairs_with_bias
def test_certificate_and_gradient_are_the_second_opinions(loss, penalty, bias):
    problem = small_problem(loss, penalty, bias=bias, row_weights=torch.linspace(0.5, 2, 30) if bias == "vector" else None)
    second = SecondOpinion(problem, labels(0, 30, 3))
    solutions = [solve(problem, tol=tol) for tol in (0.05, 1e-9)]
    for weight, shift in (problem.zero_point(), *((each.weight, each.bias) for each in solutions), (random(1, 3, 8), random(2, 3))):
        certificate, point = problem.certify(weight, shift, 1e-6), problem.evaluate(weight, shift)
        primal, dual = second.objective(weight.numpy(), shift.numpy()), second.dual(weight.numpy(), point.bias.numpy())
        assert certificate.primal == pytest.approx(primal, rel=1e-11)
        assert certificate.dual == pytest.approx(dual, rel=1e-8, abs=1e-10)
        assert certificate.relative_gap == pytest.approx((primal - dual) / second.zero_loss, rel=1e-6, abs=1e-9)
        np.testing.assert_allclose(point.gradient, second.slopes(weight.numpy(), point.bias.numpy())[0], rtol=1e-9, atol=1e-11)
    assert solutions[1].certificate.relative_gap <= 1e-9


@smooth_loss
@pytest.mark.parametrize(("penalty", "bias"), list(zip(SPARSE_PENALTIES, itertools.cycle(BIASES), strict=False)))
def test_zero_is_optimal_just_above_the_critical_strength_and_not_just_below(loss, penalty, bias):
    problem = small_problem(loss, penalty, bias=bias, share=1.0)
    critical = problem.critical_strength()
    zero = problem.evaluate(*problem.zero_point())
    above = problem.with_strength(critical * (1 + 1e-9))
    assert above.evaluate(*above.zero_point()).gap <= 1e-12
    for start in (None, (random(1, 3, 8), torch.zeros(3))):
        found = solve(above, start=start)
        assert found.certificate.reached
        assert not found.weight.any() or start is not None
    below = problem.with_strength(critical * 0.98)
    assert below.evaluate(*below.zero_point()).gap > 1e-7
    solution = solve(below, tol=1e-10)
    assert solution.weight.any()
    assert solution.certificate.primal < zero.objective - 1e-7
    assert critical == pytest.approx(PENALTY_FORMULAS[penalty][1](zero.gradient.numpy()).max(), rel=1e-12)


@smooth_loss
def test_without_a_critical_strength_the_path_begins_where_weights_are_small(loss):
    problem = small_problem(loss, "ridge", share=1.0)
    critical = problem.critical_strength()
    assert 0 < critical < math.inf
    weight, free = (solve(problem.with_strength(share * critical)).weight for share in (1.0, 1e-3))
    assert 0 < float(weight.norm()) < 0.5 * float(free.norm())


def test_the_certificate_is_of_the_point_given_bias_and_all():
    problem = small_problem()
    solution = solve(problem, tol=1e-9)
    moved = solution.bias + torch.tensor([1.0, 0.0, 0.0])
    off = problem.certify(solution.weight, moved, 1e-6)
    assert not off.reached
    assert off.primal == pytest.approx(problem.objective(solution.weight, moved))
    assert off.dual == pytest.approx(solution.certificate.dual, abs=1e-8)


def test_a_point_as_that_of_a_linear_layer_or_of_another_shape():
    problem, layer = small_problem(), torch.nn.Linear(8, 3)
    plain = layer.weight.detach().double(), layer.bias.detach().double()
    assert problem.certify(layer.weight, layer.bias, 1e-6) == problem.certify(*plain, 1e-6)
    found = solve(problem, start=(layer.weight, layer.bias), max_products=1e-9)
    assert not found.weight.requires_grad
    for method in (problem.objective, problem.accuracy, lambda weight, bias: problem.certify(weight, bias, 1e-6)):
        with pytest.raises(OptionError, match=r"a weight of shape \(8, 3\)") as caught:
            method(layer.weight.T, layer.bias)
        assert "(3, 8) and (3,)" in caught.value.needed


@pytest.mark.parametrize("loss", LOSS_NAMES)
def test_accuracy_of_targets_in_the_form_of_each_loss(loss):
    problem = Problem(EYE, torch.tensor([0, 1, 2]), loss=loss)
    assert problem.classifies
    assert problem.accuracy(torch.eye(3), torch.zeros(3)) == 1.0
    assert problem.accuracy(torch.eye(3), torch.tensor([10.0, 0, 0])) == pytest.approx(1 / 3)
    if loss not in TWO_OUTPUTS:
        binary = Problem(EYE, torch.tensor([0, 1, 1]), loss=loss, num_outputs=1)
        assert binary.accuracy(torch.tensor([[-1.0, 1.0, -1.0]]), torch.zeros(1)) == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("targets", "options", "outputs"),
    [
        (torch.tensor([0, 4, 1]), {}, 5),
        (torch.tensor([0, 4, 1], dtype=torch.uint16), {}, 5),
        (torch.tensor([0, 0, 0]), {}, 2),
        (torch.tensor([0, 1, 0]), {"num_outputs": 7}, 7),
        (torch.tensor([[0, 1, 1], [1, 0, 0], [0, 0, 0]]), {"loss": "logistic"}, 3),
        (torch.tensor([0.1, 0.2, 0.3]), {"loss": "squared"}, 1),
        (torch.zeros(3, 2), {"loss": "squared"}, 2),
    ],
)
def test_the_targets_decide_the_number_of_outputs_and_whether_there_is_an_accuracy(targets, options, outputs):
    problem = Problem(EYE, targets, **options)
    weight, bias = problem.zero_point()
    assert (problem.num_outputs, weight.shape, bias.shape) == (outputs, (outputs, 3), (outputs,))
    assert problem.classifies == (targets.dim() == 1 and not targets.is_floating_point())
    assert math.isnan(problem.accuracy(weight, bias)) != problem.classifies


@pytest.mark.parametrize("strength", [0, -1.0, math.nan, math.inf, True, "auto", None, np.float32("nan"), np.bool_(True)])
def test_bad_strengths(strength):
    with pytest.raises(OptionError, match="strength=") as caught:
        Problem(EYE, torch.tensor([0, 1, 2]), strength=strength)
    assert (caught.value.needed, caught.value.fix) == ("a positive number", "pass strength=1e-3")
    with pytest.raises(OptionError, match="strength="):
        small_problem().with_strength(strength)


@pytest.mark.parametrize(
    ("targets", "options", "found"),
    [
        ([0, 1, 2], {}, "targets of type list"),
        (torch.tensor([0, 1]), {}, "2 targets for 3 samples"),
        (torch.tensor([0, 1, 2]), {"num_outputs": 2}, "labels from 0 to 2"),
    ],
)
def test_bad_targets(targets, options, found):
    with pytest.raises(DataError, match=found):
        Problem(EYE, targets, **options)


@pytest.mark.parametrize("loss", ["cross_entropy", "squared"])
def test_dual_rows_of_a_bias_that_is_not_exact_give_no_bound(loss):
    problem = small_problem(loss)
    exact = problem.evaluate(*problem.zero_point())
    for apart in (0.0, 0.1):
        moved = exact.scores + apart * problem.features.bias_column * torch.tensor([1.0, 0.0, 0.0])
        rows = problem.loss.gradient(moved, problem.targets)
        value = problem.dual_value(rows, problem.features.adjoint(rows)[0])
        assert value == -math.inf if apart else 0 < value <= exact.objective


@pytest.mark.parametrize(("outputs", "weighted"), [(1, True), (3, False), (3, True)])
@pytest.mark.parametrize("bias", ["one", "none"])
def test_zero_is_optimal_above_the_critical_strength_of_the_hinge(bias, outputs, weighted):
    """It is a bound: at a kink many dual points are optimal for zero weights."""
    weights = torch.linspace(0.5, 2, 30) if weighted else None
    options = {"bias": bias, "classes": max(outputs, 2), "num_outputs": outputs, "row_weights": weights}
    problem = small_problem("hinge", "l1", share=1.0, **options)
    above = solve(problem.with_strength(1.01 * problem.critical_strength()), tol=1e-7)
    assert above.certificate.reached
    assert float(above.weight.abs().max()) < 1e-4


@pytest.mark.parametrize("loss", LOSS_FORMULAS)
@pytest.mark.parametrize("bias", BIASES)
def test_any_dual_rows_give_a_bound(loss, bias):
    problem = small_problem(loss, "group_l1", bias=bias)
    best = solve(problem).certificate
    for seed in range(3):
        assert problem.evaluate(*problem.zero_point(), raw=random(seed, 30, 3)).dual <= best.primal + 1e-12
        if not problem.loss.smooth:
            gradient, dual = problem.dual_point(random(seed, 30, 3))
            assert -math.inf < dual <= best.primal + 1e-12
            assert gradient.shape == (3, 8)


@pytest.mark.parametrize("penalty", PENALTY_FORMULAS)
@pytest.mark.parametrize("loss", LOSS_FORMULAS)
def test_outputs_add_up_to_the_objective(loss, penalty):
    problem = small_problem(loss, penalty)
    weight, bias = random(1, 3, 8), random(2, 3)
    parts = problem.objective_by_output(weight, problem.features.scores(weight, bias))
    assert float(parts.sum()) == pytest.approx(problem.objective(weight, bias), rel=1e-12)
    assert len(parts) == (1 if loss in TWO_OUTPUTS or penalty.startswith("group") else 3)


@pytest.mark.parametrize(
    ("loss", "factor", "dtype"),
    [("squared", 1.0, torch.float32), ("squared", 1e7, torch.float64)],
    ids=["usual", "large features"],
)
def test_the_precision_of_iterations(loss, factor, dtype):
    assert small_problem(loss, "ridge", features=factor * spikes(0, 30, 8).double()).working_dtype is dtype


# -- in words ----------------------------------------------------------------------------------------------------------
def test_a_certificate_in_words():
    certificate = Certificate(0.5, 0.25, 0.25, 0.125, 1e-6, False)
    assert str(certificate) == "objective 0.5, gap 2.50e-01, relative gap 1.25e-01 (tol 1e-06: NOT reached)"
    assert "reached)" in str(Certificate(0.5, 0.5, 0.0, 0.0, 1e-6, True))
    assert "NOT" not in str(Certificate(0.5, 0.5, 0.0, 0.0, 1e-6, True))


# -- the exact bias ---------------------------------------------------------------------------------------------------------
N, C = 40, 3
seeds = st.integers(0, 2**16)
columns = st.sampled_from(["one", "vector"])


def slope(loss, features, targets, scores, bias):
    rows = loss.gradient(scores + torch.outer(features.bias_column[:, 0], bias), targets)
    return float((rows.T @ (features.row_weights * features.bias_column[:, 0])).abs().max())


@smooth_loss
@quick
@given(seed=seeds, scale=st.floats(0, 30), far=st.floats(-100, 100), column=columns, weighted=st.booleans(), classes=st.just(C))
@example(seed=0, scale=0.0, far=0.0, column="one", weighted=False, classes=2)  # the third class never occurs
def test_no_slope_is_left_wherever_it_starts(loss, seed, scale, far, column, weighted, classes):
    loss, weights = make_loss(loss), torch.linspace(0.5, 2, N, dtype=torch.float64) if weighted else None
    features, targets = Features(spikes(0, N, 4), bias_column(column, N), weights), loss.prepare(labels(seed, N, classes), C)
    scores, start = random(seed, N, C, scale=scale), far * torch.tensor([1.0, 0.0, -1.0], dtype=torch.float64)
    found = solve_bias(loss, features, targets, scores, start)
    assert torch.isfinite(found).all()
    assert slope(loss, features, targets, scores, found) < 1e-13 * max(1.0, scale)


@pytest.mark.parametrize("column", [None, 0.0])
@pytest.mark.parametrize("name", SMOOTH_LOSSES)
def test_without_a_bias_it_is_zero(name, column):
    loss = make_loss(name)
    features = Features(spikes(0, N, 4), column)
    assert not solve_bias(loss, features, loss.prepare(labels(0, N, C), C), random(1, N, C), torch.ones(C).double()).any()
