import torch
from hypothesis import given
from hypothesis import strategies as st

from snn_recon_plugin.convex import Hinge, SquaredHinge

from .helpers import labels, quick, random

seeds = st.integers(0, 2**16)


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
    assert float(smooth.curvature(scores, targets).diagonal.max()) <= smooth.max_curvature


def test_the_squared_hinge_has_no_slope_beyond_the_margin():
    loss, signs = SquaredHinge(), torch.ones(3, 1, dtype=torch.float64)
    scores = torch.tensor([[0.0], [1.0], [5.0]], dtype=torch.float64)
    assert loss.value(scores, signs).tolist() == [0.5, 0.0, 0.0]
    assert loss.gradient(scores, signs)[:, 0].tolist() == [-1.0, 0.0, 0.0]
    assert loss.curvature(scores, signs).diagonal[:, 0].tolist() == [1.0, 0.0, 0.0]
