import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from snn_recon_plugin.convex import Features, make_loss
from snn_recon_plugin.convex.problem import solve_bias

from .helpers import LOSS_NAMES, bias_column, labels, quick, random, smooth_loss, spikes

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


@quick
@given(
    seed=seeds,
    n=st.integers(1, 40),
    width=st.sampled_from([100.0, 1.0, 0.1, 1e-3, 1e-6]),
    bias=columns,
    centred=st.booleans(),
    spread=st.sampled_from([0.0, 1e-8, 1.0, 10.0]),
    far=st.floats(-10, 10),
)
@example(seed=0, n=6, width=1e-3, bias="vector", centred=False, spread=0.0, far=0.5)
def test_the_bias_of_a_smoothed_hinge_is_exact(seed, n, width, bias, centred, spread, far):
    """Also if every row is on a straight piece, where the curvature is zero."""
    targets = make_loss("hinge").prepare(labels(seed, n, C), C)
    loss = make_loss("hinge").smoothed(width, -0.3 * targets.double() if centred else None)
    weights = torch.arange(1, n + 1).double() % 4 if seed % 2 and n > 1 else None
    features = Features(spikes(seed, n, 4), bias_column(bias, n), weights)
    scores = random(seed, n, C, scale=spread)
    found = solve_bias(loss, features, targets, scores, torch.full((C,), far, dtype=torch.float64))
    assert slope(loss, features, targets, scores, found) < 1e-15 * max(1.0, spread, float(found.abs().max())) / width + 1e-12


@pytest.mark.parametrize("outputs", [1, 3])
@quick
@given(seed=seeds, scale=st.floats(0.01, 30), signed=st.booleans(), weighted=st.booleans())
def test_the_hinges_bias_is_the_best_of_all_kinks(outputs, seed, scale, signed, weighted):
    """The objective is piecewise linear in each bias, so one of its kinks is a minimum: try them all."""
    loss = make_loss("hinge")
    column = random(seed + 1, N) if signed else bias_column("vector", N)
    features = Features(spikes(0, N, 4), column, torch.arange(N) % 3 if weighted else None)
    targets, scores = loss.prepare(labels(seed, N, max(outputs, 2)), outputs), random(seed, N, outputs, scale=scale)
    found = solve_bias(loss, features, targets, scores, torch.zeros(outputs, dtype=torch.float64))

    def mean_loss(k, bias):
        return float(features.row_weights @ (1 - targets[:, k] * (scores[:, k] + column * bias)).clamp_min(0))

    for k, kinks in enumerate(((targets - scores) / column[:, None]).T):
        assert mean_loss(k, found[k]) == pytest.approx(min(mean_loss(k, kink) for kink in kinks), rel=1e-12)


@pytest.mark.parametrize("column", [None, 0.0])
@pytest.mark.parametrize("name", LOSS_NAMES)
def test_without_a_bias_it_is_zero(name, column):
    loss = make_loss(name)
    features = Features(spikes(0, N, 4), column)
    assert not solve_bias(loss, features, loss.prepare(labels(0, N, C), C), random(1, N, C), torch.ones(C).double()).any()
