import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from snn_recon_plugin.convex import LOSSES, CrossEntropy, Features, Huber, Logistic, Problem, Squared, make_loss, solve
from snn_recon_plugin.errors import DataError, OptionError

from .helpers import LOSS_FORMULAS, TWO_OUTPUTS, VALUES, bias_column, labels, quick, random, zoom_maximum

CASES = [(name, outputs) for name in LOSSES for outputs in (1, 2, 3) if outputs > 1 or name not in TWO_OUTPUTS]
every_case = pytest.mark.parametrize(("name", "outputs"), CASES)
seeds = st.integers(0, 2**16)


def rows(name, outputs, seed, n=6, scale=2.0):
    """A loss with random scores and prepared targets."""
    loss = make_loss(name)
    targets = random(seed + 9, n) if name in VALUES and outputs == 1 else labels(seed, n, max(outputs, 2))
    return loss, random(seed, n, outputs, scale=scale), loss.prepare(targets, outputs)


@every_case
def test_value_is_the_formula(name, outputs):
    loss, scores, targets = rows(name, outputs, 1, n=20)
    formula = LOSS_FORMULAS[name]
    one_value = name in VALUES and outputs == 1
    encoded = targets.numpy() if one_value else formula.encode(labels(1, 20, max(outputs, 2)).numpy(), outputs)
    np.testing.assert_allclose(loss.value(scores, targets), formula.value(scores.numpy(), encoded), rtol=1e-13)
    np.testing.assert_allclose(loss.gradient(scores, targets), formula.gradient(scores.numpy(), encoded), rtol=1e-12, atol=1e-15)


@every_case
@settings(quick, max_examples=12)
@given(seed=seeds, shrink=st.floats(0.05, 0.95))
def test_conjugate_is_the_maximum_over_scores(name, outputs, seed, shrink):
    loss, scores, targets = rows(name, outputs, seed, n=1, scale=1.0)
    dual = shrink * loss.gradient(scores, targets)
    brute = zoom_maximum(lambda z: (z * dual).sum(1) - loss.value(z, targets.expand(len(z), *targets.shape[1:])), outputs)
    assert float(loss.conjugate(dual, targets)[0]) == pytest.approx(brute, abs=2e-6)


@every_case
@quick
@given(seed=seeds, scale=st.floats(0.01, 10), size=st.floats(0.1, 3))
def test_fenchel_young(name, outputs, seed, scale, size):
    """An equality at the gradient, and an inequality at every other dual point."""
    loss, scores, targets = rows(name, outputs, seed, scale=scale)
    dual = loss.gradient(scores, targets)
    left = loss.value(scores, targets) + loss.conjugate(dual, targets)
    torch.testing.assert_close(left, (dual * scores).sum(1), rtol=1e-9, atol=1e-9)
    for other in (random(seed + 1, 6, outputs, scale=size), size * loss.gradient(random(seed + 2, 6, outputs), targets)):
        assert (loss.value(scores, targets) + loss.conjugate(other, targets) >= (other * scores).sum(1) - 1e-9 * (1 + scale)).all()


@every_case
@quick
@given(seed=seeds, shrink=st.floats(0, 1))
def test_the_conjugates_domain_is_star_shaped(name, outputs, seed, shrink):
    loss, scores, targets = rows(name, outputs, seed, scale=5.0)
    assert torch.isfinite(loss.conjugate(shrink * loss.gradient(scores, targets), targets)).all()
    # At zero it is minus the least value of the loss, which is never negative.
    assert (loss.conjugate(torch.zeros_like(scores), targets) <= 0).all()


def test_conjugates_are_infinite_outside_their_domains():
    target = torch.tensor([0])
    cross = CrossEntropy()
    for dual in ([0.5, -0.5], [-1.5, 1.5], [-0.5, 0.4]):  # a negative mass, a mass above one, a sum that isn't zero
        assert cross.conjugate(torch.tensor([dual], dtype=torch.float64), target).isinf().all()
    logistic, sign = Logistic(), torch.tensor([[1.0]], dtype=torch.float64)
    for dual in (0.1, -1.1):
        assert logistic.conjugate(torch.tensor([[dual]], dtype=torch.float64), sign).isinf().all()
    assert float(logistic.conjugate(torch.tensor([[-1.0]], dtype=torch.float64), sign)) == 0


@every_case
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_large_scores_stay_finite_and_inputs_unchanged(name, outputs, dtype):
    loss, scores, targets = rows(name, outputs, 5)
    scores = (1e4 * scores).to(dtype)
    before, kept = scores.clone(), targets.clone()
    value, gradient, curvature = loss.value(scores, targets), loss.gradient(scores, targets), loss.curvature(scores, targets)
    assert value.dtype == gradient.dtype == curvature.diagonal.dtype == dtype
    assert torch.isfinite(value).all()
    assert torch.isfinite(gradient).all()
    assert torch.isfinite(curvature.product(gradient)).all()
    dual = gradient.clone()
    loss.conjugate(dual, targets)
    assert torch.equal(dual, gradient)
    assert torch.equal(scores, before)
    assert torch.equal(targets, kept)


def test_labels_of_two_classes_are_targets_of_one_squared_output():
    squared = Squared()
    for dtype in (torch.int64, torch.uint8, torch.bool):
        prepared = squared.prepare(torch.tensor([0, 1, 1]).to(dtype), 1)
        assert prepared.dtype == torch.float64
        assert prepared.tolist() == [[0.0], [1.0], [1.0]]
    with pytest.raises(DataError, match="labels from 0 to 2"):
        squared.prepare(torch.tensor([0, 1, 2]), 1)
    # The nearer of the two targets.
    assert squared.predictions(torch.tensor([[-1.0], [0.4], [0.6], [3.0]])).tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("shape", [(4,), (4, 3), (4, 2, 1)])
def test_regression_targets_of_a_wrong_shape(shape):
    with pytest.raises(DataError, match=r"regression targets of shape \(4") as caught:
        Squared().prepare(torch.zeros(shape), 2)
    assert "(samples, 2)" in caught.value.needed


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_regression_targets_that_are_not_finite(value):
    with pytest.raises(DataError, match="NaN or infinite"):
        Squared().prepare(torch.tensor([0.0, value]), 1)


@every_case
def test_predictions(name, outputs):
    scores = torch.tensor([[-1.0], [2.0]]) if outputs == 1 else torch.eye(outputs)
    expected = [0, 1] if outputs == 1 else list(range(outputs))
    assert make_loss(name).predictions(scores).tolist() == expected


def smoothed(share=0.3):
    targets = labels(1, 20, 3)
    return CrossEntropy(share), random(4, 20, 3, scale=2.0), targets


def test_smoothed_labels_are_torchs():
    loss, scores, targets = smoothed()
    scores.requires_grad_()
    expected = torch.nn.functional.cross_entropy(scores, targets, label_smoothing=0.3, reduction="none")
    (gradient,) = torch.autograd.grad(expected.sum(), scores)
    torch.testing.assert_close(loss.value(scores.detach(), targets), expected.detach(), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(loss.gradient(scores.detach(), targets), gradient, rtol=1e-12, atol=1e-14)


def test_conjugate_of_smoothed_labels():
    loss, scores, targets = smoothed()
    dual = loss.gradient(scores, targets)
    # Fenchel and Young: equality at the gradient, inequality elsewhere.
    torch.testing.assert_close(loss.value(scores, targets) + loss.conjugate(dual, targets), (scores * dual).sum(1))
    other = loss.gradient(random(5, 20, 3), targets)
    assert bool((loss.value(scores, targets) + loss.conjugate(other, targets) > (scores * other).sum(1)).all())
    assert bool(torch.isinf(loss.conjugate(dual + 1, targets)).all())


def test_options_out_of_range():
    for smoothing in (-0.1, 1.1, float("nan")):
        with pytest.raises(OptionError, match="smoothing="):
            CrossEntropy(smoothing)
    for width in (0.0, -1.0):
        with pytest.raises(OptionError, match="width="):
            Huber(width)


def test_no_smoothing_is_cross_entropy():
    _, scores, targets = smoothed()
    assert torch.equal(CrossEntropy(0.0).value(scores, targets), CrossEntropy().value(scores, targets))
    assert (CrossEntropy().name, CrossEntropy(0.1).name) == ("cross_entropy", "cross_entropy(label_smoothing=0.1)")


def test_a_loss_of_ones_own_with_kinks_needs_a_smoothing_and_a_bias():
    class Own(Logistic):
        name = "own"
        max_curvature, smooth = float("inf"), False

    assert not Own().smooth
    assert CrossEntropy().smooth
    assert Squared().smoothed(0.1).name == "squared"
    with pytest.raises(OptionError, match="loss 'own' with kinks") as caught:
        Own().smoothed(1.0)
    assert "smoothed(width, centre)" in caught.value.needed
    with pytest.raises(OptionError, match="without an exact bias"):
        solve(Problem(Features(torch.eye(2)), torch.tensor([0, 1]), loss=Own()))


@pytest.mark.parametrize("width", [0.05, 0.3, 2.0])
@pytest.mark.parametrize("penalty", ["ridge", "l1", "group_l1"])
def test_huber_with_targets_far_off_is_clarabels(width, penalty):
    """Nearly all residuals are beyond the least width, where the loss has no curvature."""
    targets = random(1, 60, 2)
    targets[::7] += 20
    for bias in ("one", "none", "vector"):
        problem = Problem(Features(random(0, 60, 5), bias_column(bias, 60)), targets, loss=Huber(width), penalty=penalty)
        problem = problem.with_strength(0.05 * problem.critical_strength())
        solution, other = solve(problem, tol=1e-8), solve(problem, solver="clarabel", tol=1e-7)
        assert solution.certificate.reached
        assert solution.certificate.primal == pytest.approx(other.certificate.primal, rel=1e-6)
        assert solution.certificate.dual <= other.certificate.primal + 1e-12


def test_a_wide_huber_is_squared_and_a_narrow_one_forgets_targets_far_off():
    features, weight = Features(random(0, 80, 3)), random(2, 1, 3)
    clean = (features.matrix @ weight.T)[:, 0]
    targets = clean.clone()
    targets[::8] += 30
    wide, squared, narrow = (
        solve(Problem(features, targets, loss=loss, penalty="ridge", strength=1e-6)) for loss in (Huber(1e3), "squared", Huber(0.1))
    )
    torch.testing.assert_close(wide.weight, squared.weight, rtol=1e-4, atol=1e-5)
    assert float((narrow.weight - weight).norm()) < 0.1 * float((squared.weight - weight).norm())
    assert (Huber().name, Huber(0.1).name) == ("huber", "huber(delta=0.1)")


@pytest.mark.parametrize("width", [1.0, 0.1])
def test_huber_with_targets_far_from_zero(width):
    """Every residual of zero scores is far beyond the width, so that nothing bends: the bias is found by sorting."""
    features = Features(random(0, 200, 5))
    targets = 1e5 + 3e3 * random(1, 200, 1).double()
    solution = solve(Problem(features, targets, loss=Huber(width), penalty="ridge", strength=1e-3), tol=1e-6)
    assert solution.certificate.reached
    residual = features.matrix.double() @ solution.weight.T + solution.bias - targets
    assert abs(float(Huber(width).gradient(residual, torch.zeros_like(residual)).mean())) < 1e-6 * width
