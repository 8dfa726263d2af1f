"""The native solver against an interior-point method, on random programs of every loss and penalty."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from snn_recon_plugin.convex import Design, Outcome, Problem, solve

from .helpers import BIASES, KINKED_LOSSES, LOSS_NAMES, PENALTY_NAMES, bias_column, labels, quick, random, spikes

PRODUCT = [(loss, penalty) for loss in LOSS_NAMES for penalty in PENALTY_NAMES]


@pytest.mark.parametrize("pair", PRODUCT, ids="-".join)
@settings(quick, max_examples=2)
@given(
    seed=st.integers(0, 2**16),
    n=st.integers(8, 40),
    p=st.integers(1, 12),
    classes=st.integers(2, 4),
    bias=st.sampled_from(BIASES),
    share=st.floats(0.05, 0.9),
    binary=st.booleans(),
    weighted=st.booleans(),
)
def test_clarabel_finds_the_same_objective(pair, seed, n, p, classes, bias, share, binary, weighted):
    loss, penalty = pair
    features = spikes(seed, n, p) if binary else random(seed, n, p)
    weights = 0.5 + torch.rand(n, generator=torch.Generator().manual_seed(seed)) if weighted else None
    design = Design(features, bias_column(bias, n), weights)
    problem = Problem(design, labels(seed, n, classes), loss=loss, penalty=penalty, num_outputs=classes)
    problem = problem.with_strength(max(share * problem.critical_strength(), 1e-6))
    native = solve(problem, tol=2e-8 if loss in KINKED_LOSSES else 1e-9)
    assert native.outcome is Outcome.CONVERGED
    assert native.certificate.gap > -1e-12 * problem.zero_loss
    other = solve(problem, solver="clarabel", tol=1e-7)
    assert native.certificate.primal == pytest.approx(other.certificate.primal, rel=1e-7)
    assert native.certificate.dual <= other.certificate.primal + 1e-12


@pytest.mark.parametrize("loss", LOSS_NAMES)
@pytest.mark.parametrize("penalty", PENALTY_NAMES)
def test_both_precisions_of_features_give_the_same_answer(loss, penalty):
    """float32 features are those numbers: the float64 program of the same numbers has the same optimum, to the tolerance."""
    features = random(3, 60, 10).float()
    tol = 1e-7 if loss in KINKED_LOSSES else 1e-9
    found = []
    for dtype in (torch.float32, torch.float64):
        problem = Problem(Design(features.to(dtype)), labels(3, 60, 3), loss=loss, penalty=penalty, strength=0.01)
        found.append(solve(problem, tol=tol))
    single, double = found
    assert single.outcome is double.outcome is Outcome.CONVERGED
    assert single.certificate.primal == pytest.approx(double.certificate.primal, abs=2 * tol * problem.zero_loss)
    assert single.certificate.primal >= double.certificate.dual - 1e-12
    assert double.certificate.primal >= single.certificate.dual - 1e-12


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine")
def test_a_gpu_gives_the_same_answers():
    features, classes = random(3, 60, 10), labels(3, 60, 3)
    for loss, penalty in PRODUCT:
        found = []
        for device in ("cpu", "cuda"):
            problem = Problem(Design(features.to(device)), classes.to(device), loss=loss, penalty=penalty, strength=0.01)
            found.append(solve(problem, tol=1e-7))
        assert found[1].weight.device.type == "cuda"
        assert found[1].certificate.primal == pytest.approx(found[0].certificate.primal, abs=2e-7 * problem.zero_loss)
