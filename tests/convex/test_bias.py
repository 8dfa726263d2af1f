import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from scipy import optimize

from snn_recon_plugin.convex import Features, make_loss
from snn_recon_plugin.convex.bias import solve_bias

from .helpers import LOSS_NAMES, SMOOTH_LOSSES, bias_column, labels, quick, random, spikes

N, C = 40, 3
smooth_loss = pytest.mark.parametrize("name", SMOOTH_LOSSES)


def setting(name, bias="one", seed=0, classes=C, row_weights=None):
    loss = make_loss(name)
    features = Features(spikes(seed, N, 4), bias_column(bias, N), row_weights)
    return loss, features, loss.prepare(labels(seed, N, classes), C)


def mean_loss(loss, features, targets, scores, bias):
    return float(features.row_weights @ loss.value(scores + torch.outer(features.bias_column[:, 0], bias), targets))


def slope(loss, features, targets, scores, bias):
    rows = loss.gradient(scores + torch.outer(features.bias_column[:, 0], bias), targets)
    return rows.T @ (features.row_weights * features.bias_column[:, 0])


def scipys_minimum(loss, features, targets, scores):
    def both(b):
        bias = torch.as_tensor(b, dtype=torch.float64)
        return mean_loss(loss, features, targets, scores, bias), slope(loss, features, targets, scores, bias).numpy()

    return optimize.minimize(both, [0.0] * C, jac=True, method="BFGS", options={"gtol": 1e-10}).fun


@smooth_loss
@pytest.mark.parametrize("bias", ["one", "vector"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("scale", [0.0, 1.0, 5.0])
def test_the_bias_is_the_minimiser_that_scipy_finds(name, bias, weighted, scale):
    weights = torch.linspace(0.5, 2, N, dtype=torch.float64) if weighted else None
    loss, features, targets = setting(name, bias, row_weights=weights)
    scores = random(1, N, C, scale=scale)
    found = solve_bias(loss, features, targets, scores, torch.zeros(C, dtype=torch.float64))
    assert float(slope(loss, features, targets, scores, found).abs().max()) < 1e-13
    expected = scipys_minimum(loss, features, targets, scores)
    assert mean_loss(loss, features, targets, scores, found) == pytest.approx(expected, rel=1e-9, abs=1e-12)


@smooth_loss
@quick
@given(seed=st.integers(0, 2**16), scale=st.floats(0.01, 30), far=st.floats(-100, 100))
def test_the_bias_is_exact_wherever_it_starts(name, seed, scale, far):
    """The dual point is feasible only if the slope in the bias is zero, also from a distant start."""
    loss, features, targets = setting(name)
    scores = random(seed, N, C, scale=scale)
    start = far * torch.tensor([1.0, 0.0, -1.0], dtype=torch.float64)
    found = solve_bias(loss, features, targets, scores, start)
    assert float(slope(loss, features, targets, scores, found).abs().max()) < 1e-10


@quick
@given(
    seed=st.integers(0, 2**16),
    n=st.integers(1, 40),
    width=st.sampled_from([100.0, 1.0, 0.1, 1e-3, 1e-6]),
    bias=st.sampled_from(["one", "vector"]),
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
    left = float(slope(loss, features, targets, scores, found).abs().max())
    assert left < 1e-15 * max(1.0, spread, float(found.abs().max())) / width + 1e-12


def test_cross_entropy_without_scores_gives_the_log_frequencies():
    loss, features, targets = setting("cross_entropy")
    found = solve_bias(loss, features, targets, torch.zeros(N, C, dtype=torch.float64), torch.zeros(C, dtype=torch.float64))
    frequencies = torch.bincount(targets, minlength=C) / N
    torch.testing.assert_close(torch.softmax(found, 0), frequencies.double())


@pytest.mark.parametrize("name", SMOOTH_LOSSES)
def test_a_class_that_never_occurs_ends_with_a_vanishing_slope(name):
    loss, features, targets = setting(name, classes=2)
    scores = torch.zeros(N, C, dtype=torch.float64)
    found = solve_bias(loss, features, targets, scores, torch.zeros(C, dtype=torch.float64))
    assert torch.isfinite(found).all()
    assert float(slope(loss, features, targets, scores, found).abs().max()) < 1e-12


@pytest.mark.parametrize("outputs", [1, 3])
@quick
@given(seed=st.integers(0, 2**16), scale=st.floats(0.01, 30), signed=st.booleans(), weighted=st.booleans())
def test_the_hinges_bias_is_the_best_of_all_kinks(outputs, seed, scale, signed, weighted):
    """The objective is piecewise linear in each bias, so one of its kinks is a minimum: try them all."""
    loss = make_loss("hinge")
    column = random(seed + 1, N) if signed else bias_column("vector", N)
    features = Features(spikes(0, N, 4), column, torch.arange(N) % 3 if weighted else None)
    targets, scores = loss.prepare(labels(seed, N, max(outputs, 2)), outputs), random(seed, N, outputs, scale=scale)
    found = solve_bias(loss, features, targets, scores, torch.zeros(outputs, dtype=torch.float64))
    kinks = (targets - scores) / column[:, None]
    best = [
        min(float(features.row_weights @ (1 - targets[:, k] * (scores[:, k] + column * b)).clamp_min(0)) for b in kinks[:, k])
        for k in range(outputs)
    ]
    assert mean_loss(loss, features, targets, scores, found) == pytest.approx(sum(best), rel=1e-12)


@pytest.mark.parametrize("column", [None, 0.0])
@pytest.mark.parametrize("name", LOSS_NAMES)
def test_without_a_bias_it_is_zero(name, column):
    loss = make_loss(name)
    targets = loss.prepare(labels(0, N, C), C)
    features = Features(spikes(0, N, 4), column)
    assert not solve_bias(loss, features, targets, random(1, N, C), torch.ones(C, dtype=torch.float64)).any()
