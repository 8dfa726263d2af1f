import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize

from snn_recon_plugin.convex import Design, MultiMargin, Outcome, Problem, SquaredMultiMargin, make_loss, solve
from snn_recon_plugin.convex.bias import solve_bias
from snn_recon_plugin.errors import DataError, OptionError

from .helpers import BIASES, PENALTY_NAMES, SecondOpinion, bias_column, labels, quick, random, small_problem, spikes

NAMES = ("multi_margin", "squared_multi_margin")
seeds = st.integers(0, 2**16)
every_power = pytest.mark.parametrize("p", [1, 2])
every_name = pytest.mark.parametrize("name", NAMES)
every_penalty = pytest.mark.parametrize("penalty", PENALTY_NAMES)


@every_power
@quick
@given(seed=seeds, scale=st.floats(0.01, 100), margin=st.floats(0.1, 10), classes=st.integers(2, 6))
def test_values_and_gradients_are_torchs(p, seed, scale, margin, classes):
    scores, targets = random(seed, 9, classes, scale=scale).requires_grad_(), labels(seed, 9, classes)
    loss = MultiMargin(p, margin)
    expected = torch.nn.MultiMarginLoss(p, margin, reduction="none")(scores, targets)
    torch.testing.assert_close(loss.value(scores, targets), expected, rtol=1e-12, atol=1e-14)
    (slope,) = torch.autograd.grad(expected.sum(), scores)
    torch.testing.assert_close(loss.gradient(scores.detach(), targets), slope, rtol=1e-12, atol=1e-14)


@every_power
@quick
@given(seed=seeds, scale=st.floats(0.01, 30), margin=st.floats(0.1, 10), shift=st.floats(-50, 50))
def test_conjugates_by_fenchel_young_and_a_common_shift_is_not_seen(p, seed, scale, margin, shift):
    loss, targets = MultiMargin(p, margin), labels(seed, 6, 4)
    scores, others = random(seed, 6, 4, scale=scale), random(seed + 1, 6, 4, scale=scale)
    dual = loss.gradient(scores, targets)
    size = 1e-10 * (1 + scale * scale)
    gain = (dual * scores).sum(1) - loss.value(scores, targets)
    torch.testing.assert_close(loss.conjugate(dual, targets), gain, rtol=1e-10, atol=size)
    assert (loss.conjugate(dual, targets) >= (dual * others).sum(1) - loss.value(others, targets) - size).all()
    assert float(dual.sum(1).abs().max()) <= 1e-12 * (1 + scale)
    torch.testing.assert_close(loss.value(scores + shift, targets), loss.value(scores, targets), rtol=1e-9, atol=1e-11)


@every_power
def test_conjugates_are_infinite_outside_their_domains(p):
    loss, target = MultiMargin(p), torch.tensor([0])
    for dual in ([0.1, -0.1, 0.0], [-0.5, 0.6, -0.1], [-0.5, 0.2, 0.2]):  # the wrong sign for all, for one; a sum that isn't zero
        assert loss.conjugate(torch.tensor([dual], dtype=torch.float64), target).isinf().all()
    large = torch.tensor([[-0.5, 0.4, 0.1]], dtype=torch.float64)
    assert bool(loss.conjugate(large, target).isinf()) == (p == 1)  # 0.4 > 1/3


@quick
@given(seed=seeds, width=st.floats(1e-4, 10), scale=st.floats(0.01, 10), centred=st.booleans())
def test_the_smoothing_is_a_smooth_loss_below_its_own(seed, width, scale, centred):
    loss, targets, scores = MultiMargin(margin=1.5), labels(seed, 6, 4), random(seed, 6, 4, scale=scale)
    centre = loss.gradient(random(seed + 1, 6, 4, scale=scale), targets) if centred else None
    smooth = loss.smoothed(width, centre)
    free = scores.clone().requires_grad_()
    (slope,) = torch.autograd.grad(smooth.value(free, targets).sum(), free)
    dual = smooth.gradient(scores, targets)
    torch.testing.assert_close(dual, slope, rtol=1e-12, atol=1e-14)
    assert torch.isfinite(loss.conjugate(dual, targets)).all()
    gain = (dual * scores).sum(1) - smooth.value(scores, targets)
    torch.testing.assert_close(smooth.conjugate(dual, targets), gain, rtol=1e-9, atol=1e-9)
    short = loss.value(scores, targets) - smooth.value(scores, targets)
    assert float(short.min()) >= -1e-12
    if not centred:
        assert float(short.max()) <= width / 2
    # Around its own dual point it touches the loss.
    own = loss.smoothed(width, loss.gradient(scores, targets))
    torch.testing.assert_close(own.value(scores, targets), loss.value(scores, targets), rtol=1e-9, atol=1e-9)


@quick
@given(seed=seeds, width=st.floats(0.1, 10), centred=st.booleans())
def test_the_smoothings_curvature_is_the_gradients_slope(seed, width, centred):
    targets, scores = labels(seed, 6, 4), random(seed, 6, 4)
    smooth = MultiMargin().smoothed(width, MultiMargin().gradient(-scores, targets) if centred else None)
    move = random(seed + 1, 6, 4, scale=1e-7)
    change = smooth.gradient(scores + move, targets) - smooth.gradient(scores, targets)
    expected = smooth.curvature(scores, targets).product(move)
    off = (change - expected).abs().amax(1) > 1e-13  # rows that crossed a kink of the slope on the way
    assert int(off.sum()) <= 1


@every_name
@every_penalty
def test_clarabel_finds_the_same_optimum(name, penalty):
    problem = small_problem(name, penalty, seed=3, bias=BIASES[PENALTY_NAMES.index(penalty) % 3])
    native = solve(problem, tol=1e-7)
    assert native.outcome is Outcome.CONVERGED
    assert native.certificate.gap >= -1e-12
    other = solve(problem, solver="clarabel", tol=1e-8)
    assert native.certificate.primal == pytest.approx(other.certificate.primal, rel=1e-6)
    assert native.certificate.dual <= other.certificate.primal + 1e-12
    assert other.certificate.dual <= native.certificate.primal + 1e-12


@pytest.mark.parametrize("p", [1, 2])
def test_another_margin_scales_the_solution(p):
    """With l1 and margin m, W = m W1 at strength m^(p - 1): the loss is homogeneous in scores and margin."""
    design, targets = Design(spikes(0, 30, 8)), labels(0, 30, 3)
    one = solve(Problem(design, targets, loss=MultiMargin(p), penalty="l1", strength=0.02), tol=1e-7)
    scaled = Problem(design, targets, loss=MultiMargin(p, 3.0), penalty="l1", strength=0.02 * 3.0 ** (p - 1))
    solution = solve(scaled, tol=1e-7)
    assert solution.certificate.primal == pytest.approx(3.0**p * one.certificate.primal, rel=1e-6)
    assert solve(scaled, solver="clarabel").certificate.primal == pytest.approx(solution.certificate.primal, rel=1e-6)


def test_the_certificate_is_of_the_loss_itself_and_the_path_of_its_way():
    problem = small_problem("multi_margin", "group_l1")
    solution = solve(problem)
    second = SecondOpinion(problem, labels(0, 30, 3))
    assert solution.certificate.primal == pytest.approx(second.objective(solution.weight.numpy(), solution.bias.numpy()), rel=1e-12)
    assert solution.certificate.relative_gap == pytest.approx(solution.trace[-1].relative_gap)
    again = solve(problem, tol=1e-4, start=(solution.weight, solution.bias))
    assert again.outcome is Outcome.CONVERGED
    assert solve(problem, time_limit=0.0).outcome is Outcome.TIME_LIMIT


def linear_program(design, scores, targets):
    """The least mean loss over biases, by SciPy's linear programming."""
    rows, classes = scores.shape
    pairs = [(i, k) for i in range(rows) for k in range(classes) if k != int(targets[i])]
    matrix, right = np.zeros((len(pairs), classes + len(pairs))), np.zeros(len(pairs))
    costs = np.zeros(classes + len(pairs))
    for row, (i, k) in enumerate(pairs):
        y, c = int(targets[i]), float(design.bias_column[i])
        matrix[row, k], matrix[row, y], matrix[row, classes + row] = c, -c, -1
        right[row] = -float(1 + scores[i, k] - scores[i, y])
        costs[classes + row] = float(design.row_weights[i]) / classes
    limits = [(None, None)] * classes + [(0, None)] * len(pairs)
    return optimize.linprog(costs, A_ub=matrix, b_ub=right, bounds=limits, method="highs").fun


@settings(quick, max_examples=15)
@given(seed=seeds, scale=st.floats(0.0, 30), signed=st.booleans(), weighted=st.booleans(), classes=st.integers(2, 5))
def test_the_bias_is_the_linear_programs(seed, scale, signed, weighted, classes):
    n = 30
    column = random(seed + 1, n) if signed else bias_column("vector", n)
    design = Design(spikes(0, n, 4), column, torch.arange(n) % 3 if weighted else None)
    loss, targets, scores = make_loss("multi_margin"), labels(seed, n, classes), random(seed, n, classes, scale=scale)
    found = solve_bias(loss, design, targets, scores, torch.zeros(classes, dtype=torch.float64))
    value = float(design.row_weights @ loss.value(scores + torch.outer(column, found), targets))
    assert value == pytest.approx(linear_program(design, scores, targets), rel=1e-8, abs=1e-9)


@settings(quick, max_examples=15)
@given(seed=seeds, scale=st.floats(0.0, 30), width=st.sampled_from([1.0, 1e-2, 1e-4, 1e-6]), far=st.floats(-100, 100))
def test_a_smoothings_bias_leaves_no_slope(seed, scale, width, far):
    """Newton steps alone zigzag here: a dual point with a slope in the bias bounds nothing."""
    n, classes = 40, 4
    design = Design(spikes(0, n, 4), bias_column("vector", n))
    smooth, targets = make_loss("multi_margin").smoothed(width), labels(seed, n, classes)
    scores, start = random(seed, n, classes, scale=scale), far * torch.linspace(-1, 1, classes, dtype=torch.float64)
    found = solve_bias(smooth, design, targets, scores, start)
    rows = smooth.gradient(scores + torch.outer(design.bias_column, found), targets)
    assert float((rows.T @ (design.row_weights * design.bias_column)).abs().max()) < 1e-10


@every_name
@pytest.mark.parametrize(
    "options",
    [{"n": 3, "classes": 3}, {"num_outputs": 5}, {"n": 12, "p": 20}, {"share": 1.01}, {"classes": 2}],
    ids=["one sample per class", "absent classes", "n < P", "above the critical strength", "two classes"],
)
def test_hard_inputs(name, options):
    solution = solve(small_problem(name, "l1", **options), time_limit=60.0)
    assert solution.outcome is Outcome.CONVERGED


def test_options_and_targets():
    assert (make_loss("multi_margin").p, make_loss("squared_multi_margin").p) == (1, 2)
    assert MultiMargin(2).name == SquaredMultiMargin().name == "squared_multi_margin"
    assert MultiMargin(margin=np.float32(0.5)).margin == 0.5
    assert not MultiMargin().smooth
    assert MultiMargin(2).smoothed(0.1).smooth
    for p, margin in itertools.chain(((p, 1.0) for p in (0, 3, True, 1.5)), ((1, m) for m in (0, -1.0, float("nan"), True, "1"))):
        with pytest.raises(OptionError, match=r"p=|margin="):
            MultiMargin(p, margin)
    with pytest.raises(DataError, match="one output"):
        MultiMargin().prepare(torch.tensor([0, 1]), 1)
