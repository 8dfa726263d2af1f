import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from snn_recon_plugin.convex import Features, Hinge, Problem, SquaredHinge, SquaredMultiMargin, solve
from snn_recon_plugin.errors import OptionError

from .helpers import labels, quick, random, spikes

seeds = st.integers(0, 2**16)


# -- squared multi-class margin ---------------------------------------------------------------------------------------


@quick
@given(seed=seeds, scale=st.floats(0.01, 100), margin=st.floats(0.1, 10), classes=st.integers(2, 6), shift=st.floats(-50, 50))
def test_values_and_gradients_are_torchs_and_a_common_shift_changes_nothing(seed, scale, margin, classes, shift):
    scores, targets = random(seed, 9, classes, scale=scale).requires_grad_(), labels(seed, 9, classes)
    loss = SquaredMultiMargin(margin)
    expected = torch.nn.MultiMarginLoss(2, margin, reduction="none")(scores, targets)
    torch.testing.assert_close(loss.value(scores, targets), expected, rtol=1e-12, atol=1e-14)
    (slope,) = torch.autograd.grad(expected.sum(), scores)
    torch.testing.assert_close(loss.gradient(scores.detach(), targets), slope, rtol=1e-12, atol=1e-14)
    assert float(slope.sum(1).abs().max()) <= 1e-12 * (1 + scale)
    torch.testing.assert_close(loss.value(scores + shift, targets), expected, rtol=1e-9, atol=1e-10)


@quick
@given(seed=seeds, scale=st.floats(0.01, 30), margin=st.floats(0.1, 10))
def test_its_conjugate_obeys_fenchel_young_for_any_margin(seed, scale, margin):
    loss, targets = SquaredMultiMargin(margin), labels(seed, 6, 4)
    scores, others = random(seed, 6, 4, scale=scale), random(seed + 1, 6, 4, scale=scale)
    dual = loss.gradient(scores, targets)
    size = 1e-10 * (1 + scale * scale)
    gain = (dual * scores).sum(1) - loss.value(scores, targets)
    torch.testing.assert_close(loss.conjugate(dual, targets), gain, rtol=1e-10, atol=size)
    assert (loss.conjugate(dual, targets) >= (dual * others).sum(1) - loss.value(others, targets) - size).all()


def test_its_conjugate_is_infinite_outside_its_domain():
    loss, target = SquaredMultiMargin(), torch.tensor([0])
    for dual in ([0.1, -0.1, 0.0], [-0.5, 0.6, -0.1], [-0.5, 0.2, 0.2]):  # the wrong sign for all, for one; a sum that isn't zero
        assert loss.conjugate(torch.tensor([dual], dtype=torch.float64), target).isinf().all()
    large = torch.tensor([[-5.0, 4.0, 1.0]], dtype=torch.float64)
    assert loss.conjugate(large, target).isfinite().all()


def test_another_margin_scales_the_solution():
    """With l1 and margin m, W = m W1 at strength m: the loss is homogeneous in scores and margin."""
    features, targets = Features(spikes(0, 30, 8)), labels(0, 30, 3)
    one = solve(Problem(features, targets, loss=SquaredMultiMargin(), penalty="l1", strength=0.02), tol=1e-7)
    scaled = Problem(features, targets, loss=SquaredMultiMargin(3.0), penalty="l1", strength=0.06)
    solution = solve(scaled, tol=1e-7)
    assert solution.certificate.primal == pytest.approx(9 * one.certificate.primal, rel=1e-6)
    assert solve(scaled, solver="clarabel").certificate.primal == pytest.approx(solution.certificate.primal, rel=1e-6)


@pytest.mark.parametrize("margin", [0, -1.0, float("nan"), True, "1"])
def test_bad_margins(margin):
    assert SquaredMultiMargin(margin=np.float32(0.5)).margin == 0.5
    with pytest.raises(OptionError, match="margin="):
        SquaredMultiMargin(margin)


# -- hinge and its smoothing ------------------------------------------------------------------------------------------


def hinge_rows(seed, scale=1.0):
    loss = Hinge()
    return loss, random(seed, 6, 4, scale=scale), loss.prepare(labels(seed, 6, 4), 4)


@quick
@given(seed=seeds, width=st.floats(1e-4, 10), scale=st.floats(0.01, 10), centred=st.booleans())
def test_a_smoothing_is_a_smooth_loss_below_the_hinge(seed, width, scale, centred):
    loss, scores, targets = hinge_rows(seed, scale)
    centre = loss.gradient(random(seed + 1, 6, 4, scale=scale), targets) if centred else None
    smooth = loss.smoothed(width, centre)
    assert smooth.smooth
    free = scores.clone().requires_grad_()
    (slope,) = torch.autograd.grad(smooth.value(free, targets).sum(), free)
    dual = smooth.gradient(scores, targets)
    torch.testing.assert_close(dual, slope, rtol=1e-12, atol=1e-14)
    assert torch.isfinite(loss.conjugate(dual, targets)).all()  # a dual point of the hinge, too
    gain = (dual * scores).sum(1) - smooth.value(scores, targets)
    torch.testing.assert_close(smooth.conjugate(dual, targets), gain, rtol=1e-9, atol=1e-9)
    below = loss.by_output(scores, targets) - smooth.by_output(scores, targets)
    assert float(below.min()) >= -1e-12
    if not centred:
        assert float(below.max()) <= width / 2 + 1e-12
    touching = loss.smoothed(width, loss.gradient(scores, targets))  # around the hinge's own dual point
    torch.testing.assert_close(touching.value(scores, targets), loss.value(scores, targets), rtol=1e-9, atol=1e-9)


@quick
@given(seed=seeds, width=st.floats(0.1, 10), centred=st.booleans())
def test_a_smoothings_curvature_is_the_slope_of_its_gradient(seed, width, centred):
    loss, scores, targets = hinge_rows(seed)
    smooth = loss.smoothed(width, loss.gradient(-scores, targets) if centred else None)
    move = random(seed + 1, 6, 4, scale=1e-7)
    change = smooth.gradient(scores + move, targets) - smooth.gradient(scores, targets)
    off = (change - smooth.curvature(scores, targets).product(move)).abs() > 1e-13  # entries that crossed a kink of the slope
    assert int(off.sum()) <= 1
    assert float(smooth.curvature(scores, targets).diagonal.max()) <= smooth.bound


def test_the_squared_hinge_has_no_slope_beyond_the_margin():
    loss, signs = SquaredHinge(), torch.ones(3, 1, dtype=torch.float64)
    scores = torch.tensor([[0.0], [1.0], [5.0]], dtype=torch.float64)
    assert loss.value(scores, signs).tolist() == [0.5, 0.0, 0.0]
    assert loss.gradient(scores, signs)[:, 0].tolist() == [-1.0, 0.0, 0.0]
    assert loss.curvature(scores, signs).diagonal[:, 0].tolist() == [1.0, 0.0, 0.0]
