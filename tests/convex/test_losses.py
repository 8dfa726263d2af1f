import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from snn_recon_plugin.convex import (
    LOSSES,
    CrossEntropy,
    Features,
    Hinge,
    Huber,
    Logistic,
    Problem,
    Squared,
    SquaredHinge,
    make_loss,
    make_penalty,
    solve,
)
from snn_recon_plugin.errors import OptionError

from .helpers import LOSS_FORMULAS, PENALTY_NAMES, VALUES, bias_column, every_loss_case, labels, loss_rows, quick, random

seeds = st.integers(0, 2**16)


@every_loss_case
def test_value_and_gradient_are_the_formulas(name, outputs):
    loss, scores, targets = loss_rows(name, outputs, 1, n=20)
    formula = LOSS_FORMULAS[name]
    one_value = name in VALUES and outputs == 1
    encoded = targets.numpy() if one_value else formula.encode(labels(1, 20, max(outputs, 2)).numpy(), outputs)
    np.testing.assert_allclose(loss.value(scores, targets), formula.value(scores.numpy(), encoded), rtol=1e-13)
    np.testing.assert_allclose(loss.gradient(scores, targets), formula.gradient(scores.numpy(), encoded), rtol=1e-12, atol=1e-15)


@every_loss_case
@quick
@given(seed=seeds, scale=st.floats(0.01, 10), size=st.floats(0.1, 3))
def test_fenchel_young(name, outputs, seed, scale, size):
    """An equality at the gradient, and an inequality at every other dual point."""
    loss, scores, targets = loss_rows(name, outputs, seed, scale=scale)
    dual = loss.gradient(scores, targets)
    left = loss.value(scores, targets) + loss.conjugate(dual, targets)
    torch.testing.assert_close(left, (dual * scores).sum(1), rtol=1e-9, atol=1e-9)
    for other in (random(seed + 1, 6, outputs, scale=size), size * loss.gradient(random(seed + 2, 6, outputs), targets)):
        assert (loss.value(scores, targets) + loss.conjugate(other, targets) >= (other * scores).sum(1) - 1e-9 * (1 + scale)).all()
    # The domain is star-shaped.  At zero the conjugate is minus the least value of the loss, which is never negative.
    assert torch.isfinite(loss.conjugate(min(size, 1.0) * dual, targets)).all()
    assert (loss.conjugate(0 * dual, targets) <= 0).all()


@pytest.mark.parametrize(
    ("loss", "dual"),
    [
        (CrossEntropy(), [0.5, -0.5]),  # a negative mass
        (CrossEntropy(), [-1.5, 1.5]),  # a mass above one
        (CrossEntropy(), [-0.5, 0.4]),  # a sum that isn't zero
        (CrossEntropy(0.3), [0.5, 0.5]),
        (Logistic(), [0.1, 0.0]),
        (Logistic(), [-1.1, 0.0]),
    ],
)
def test_conjugates_are_infinite_outside_their_domains(loss, dual):
    assert loss.conjugate(torch.tensor([dual], dtype=torch.float64), loss.prepare(torch.tensor([0]), 2)).isinf().all()


@every_loss_case
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_large_scores_stay_finite_and_inputs_unchanged(name, outputs, dtype):
    loss, scores, targets = loss_rows(name, outputs, 5)
    scores = (1e4 * scores).to(dtype)
    before, kept = scores.clone(), targets.clone()
    value, gradient, curvature = loss.value(scores, targets), loss.gradient(scores, targets), loss.curvature(scores, targets)
    assert value.dtype == gradient.dtype == curvature.diagonal.dtype == dtype
    assert all(torch.isfinite(each).all() for each in (value, gradient, curvature.product(gradient)))
    dual = gradient.clone()
    loss.conjugate(dual, targets)
    assert torch.equal(dual, gradient)
    assert torch.equal(scores, before)
    assert torch.equal(targets, kept)


@every_loss_case
def test_predictions(name, outputs):
    scores = torch.tensor([[-1.0], [2.0]]) if outputs == 1 else torch.eye(outputs)
    assert make_loss(name).predictions(scores).tolist() == ([0, 1] if outputs == 1 else list(range(outputs)))


def test_one_squared_output_predicts_the_nearer_of_its_two_targets():
    assert Squared().predictions(torch.tensor([[-1.0], [0.4], [0.6], [3.0]])).tolist() == [0, 0, 1, 1]


WEIGHT = torch.tensor([2.0, 0.5, 1.0], dtype=torch.float64)
OF_TORCH = {
    "smoothed": (CrossEntropy(0.3), nn.CrossEntropyLoss(label_smoothing=0.3, reduction="none")),
    "smoothed, weighted": (CrossEntropy(0.3, WEIGHT.tolist()), nn.CrossEntropyLoss(WEIGHT, reduction="none", label_smoothing=0.3)),
    "weighted labels": (
        Logistic((2 * WEIGHT).tolist(), WEIGHT.tolist()),
        nn.BCEWithLogitsLoss(WEIGHT, reduction="none", pos_weight=torch.tensor(2.0)),
    ),
}


@pytest.mark.parametrize("name", OF_TORCH)
def test_losses_with_options_are_torchs(name):
    loss, user = OF_TORCH[name]
    scores, targets = random(4, 20, 3, scale=2.0).requires_grad_(), labels(1, 20, 3)
    expected = user(scores, nn.functional.one_hot(targets, 3).double() if loss.separable else targets)
    if loss.separable:
        expected = expected.sum(1)
    elif name == "smoothed, weighted":
        expected = expected / loss.class_weights(WEIGHT)[targets]
    targets = loss.prepare(targets, 3)
    (gradient,) = torch.autograd.grad(expected.sum(), scores)
    scores, value = scores.detach(), expected.detach()
    torch.testing.assert_close(loss.value(scores, targets), value, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(loss.gradient(scores, targets), gradient, rtol=1e-12, atol=1e-14)
    # Fenchel and Young: equality at the gradient, inequality elsewhere.
    torch.testing.assert_close(value + loss.conjugate(gradient, targets), (scores * gradient).sum(1))
    other = loss.gradient(random(5, 20, 3), targets)
    assert bool((value + loss.conjugate(other, targets) > (scores * other).sum(1)).all())
    step = 1e-6 * random(6, 20, 3)
    change = loss.gradient(scores + step, targets) - loss.gradient(scores - step, targets)
    torch.testing.assert_close(loss.curvature(scores, targets).product(2 * step), change, rtol=1e-4, atol=1e-12)


@pytest.mark.parametrize(
    ("loss", "name"),
    [
        (CrossEntropy(0.0), "cross_entropy"),
        (CrossEntropy(0.1), "cross_entropy(label_smoothing=0.1)"),
        (Logistic.of_torch(nn.BCEWithLogitsLoss(pos_weight=torch.tensor(2.0))), "logistic(weighted)"),
        (Logistic.of_torch(nn.BCEWithLogitsLoss(torch.ones(3))), "logistic"),
        (Huber(), "huber"),
        (Huber(0.1), "huber(delta=0.1)"),
    ],
)
def test_options_are_part_of_the_name(loss, name):
    assert loss.name == name


@pytest.mark.parametrize(
    ("make", "value", "option"),
    [
        *((CrossEntropy, value, "smoothing=") for value in (-0.1, 1.1, float("nan"))),
        (Huber, 0.0, "width="),
        (Huber, -1.0, "width="),
    ],
)
def test_options_out_of_range(make, value, option):
    with pytest.raises(OptionError, match=option):
        make(value)


def test_a_loss_of_ones_own_with_kinks_needs_the_domain_of_its_conjugate():
    class Own(Logistic):
        name = "own"
        max_curvature, smooth = float("inf"), False

    with pytest.raises(OptionError, match="loss 'own' with kinks") as caught:
        solve(Problem(Features(torch.eye(2)), torch.tensor([0, 1]), loss=Own()))
    assert "feasible(dual, targets)" in caught.value.needed


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


@pytest.mark.parametrize("width", [1.0, 0.1])
def test_huber_with_targets_far_from_zero(width):
    """Every residual of zero scores is far beyond the width, so that nothing bends: the bias is found by sorting."""
    features = Features(random(0, 200, 5))
    targets = 1e5 + 3e3 * random(1, 200, 1)
    solution = solve(Problem(features, targets, loss=Huber(width), penalty="ridge", strength=1e-3), tol=1e-6)
    assert solution.certificate.reached
    residual = features.matrix @ solution.weight.T + solution.bias - targets
    assert abs(float(residual.clamp(-width, width).mean())) < 1e-6 * width


# -- by name -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("make", "name"), [*((make_loss, name) for name in LOSSES), *((make_penalty, name) for name in PENALTY_NAMES)]
)
def test_names_and_objects_are_taken(make, name):
    made = make(name)
    assert made.name == name
    assert make(made) is made


def test_short_names_of_losses():
    names = {"ce": "cross_entropy", "nll": "cross_entropy", "bce": "logistic", "mse": "squared", "smooth_l1": "huber"}
    assert {short: make_loss(short).name for short in names} == names


@pytest.mark.parametrize(("make", "option", "valid"), [(make_loss, "loss", LOSSES), (make_penalty, "penalty", PENALTY_NAMES)])
@pytest.mark.parametrize("name", ["nope", "multi_margin", "", None])
def test_unknown_names_are_refused_with_the_valid_ones(make, option, valid, name):
    with pytest.raises(OptionError, match=f"{option}={name!r}") as caught:
        make(name)
    assert all(each in caught.value.needed for each in valid)


# -- the hinge, and squared -------------------------------------------------------------------------------------------------
@quick
@given(seed=seeds, scale=st.floats(0.01, 10))
def test_dual_rows_of_the_hinge_become_feasible_and_feasible_ones_stay(seed, scale):
    loss = Hinge()
    targets = loss.prepare(labels(seed, 6, 4), 4)
    dual = random(seed, 6, 4, scale=scale)
    found = loss.feasible(dual, targets)
    assert torch.isfinite(loss.conjugate(found, targets)).all()
    assert torch.equal(loss.feasible(found, targets), found)
    own = loss.gradient(dual, targets)
    assert torch.equal(loss.feasible(own, targets), own)


def test_the_squared_hinge_has_no_slope_beyond_the_margin():
    loss, signs = SquaredHinge(), torch.ones(3, 1, dtype=torch.float64)
    scores = torch.tensor([[0.0], [1.0], [5.0]], dtype=torch.float64)
    assert loss.value(scores, signs).tolist() == [0.5, 0.0, 0.0]
    assert loss.gradient(scores, signs)[:, 0].tolist() == [-1.0, 0.0, 0.0]
    assert loss.curvature(scores, signs).diagonal[:, 0].tolist() == [1.0, 0.0, 0.0]
