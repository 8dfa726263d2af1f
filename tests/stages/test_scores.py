"""The judge of scores, against formulas: losses, decisions, and the scale with the least loss."""

import math

import pytest
import torch
from torch.nn import functional as F

from snn_recon_plugin.convex import make_loss
from snn_recon_plugin.stages.scores import Judge, RowsPerSample, best_scale, is_lower


def drawn(*shape, classes=3):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(*shape, classes, generator=generator).double(), torch.randint(0, classes, shape[:1], generator=generator)


def test_losses_and_accuracy_weigh_samples():
    scores, labels = drawn(40)
    weights = torch.linspace(0.1, 2, 40).double()
    found = Judge(make_loss("cross_entropy"), labels, rows=RowsPerSample(), weights=weights)(scores, 3.0)
    each = F.cross_entropy(3 * scores, labels, reduction="none")
    assert found.loss == pytest.approx(float(weights @ each / weights.sum()))
    assert found.accuracy == float((scores.argmax(1) == labels).double().mean())
    assert found.samples == 40


def test_a_mean_over_steps_decides_unless_steps_have_labels():
    scores, labels = drawn(30, 4)
    loss = make_loss("cross_entropy")
    of_samples = Judge(loss, labels.repeat_interleave(4), rows=RowsPerSample(4))
    assert of_samples.accuracy(scores) == float((scores.mean(1).argmax(1) == labels).double().mean())
    counted = torch.arange(120) % 4 > 0
    of_steps = Judge(loss, labels.repeat_interleave(4), rows=RowsPerSample(4, stepwise=True), counted=counted)
    right = (scores.argmax(2) == labels[:, None])[:, 1:]
    assert of_steps.accuracy(scores) == pytest.approx(float(right.double().mean()))


def test_cross_entropy_compares_margins_at_their_best_scale():
    scores, labels = drawn(50)
    loss = make_loss("squared_hinge")
    judge = Judge(loss, loss.prepare(labels, 3), rows=RowsPerSample())
    tried = torch.linspace(-4, 6, 2001).double().exp2()
    losses = torch.stack([F.cross_entropy(scale * scores[:20], labels[:20]) for scale in tried])
    found = judge(scores, 2.0, compared=torch.arange(20))
    assert judge.compared_by == "cross_entropy"
    assert found.compared == pytest.approx(float(losses.min()), rel=1e-5)
    assert judge.best_scale(scores, torch.arange(20)) == pytest.approx(float(tried[losses.argmin()]), rel=0.01)
    assert found.loss == pytest.approx(float(loss.value(2 * scores, loss.prepare(labels, 3)).mean()))


def test_values_have_no_best_scale():
    scores, _ = drawn(20)
    judge = Judge(make_loss("squared"), torch.zeros(20, 3).double(), rows=RowsPerSample(), classifies=False)
    found = judge(scores, 0.5)
    assert found.compared == found.loss == pytest.approx(float(judge.loss(scores)) / 4)
    assert math.isnan(found.accuracy)


@pytest.mark.parametrize(("loss", "scale"), [(lambda scale: abs(math.log2(scale) - 2.3), 2**2.3), (lambda scale: math.nan, 1.0)])
def test_the_best_scale_of_any_convex_loss(loss, scale):
    assert best_scale(loss) == pytest.approx(scale, rel=1e-3)


@pytest.mark.parametrize(
    ("loss", "other", "lower"),
    [(1.0, 2.0, True), (1.0, 1.0, False), (2.0, 1.0, False), (1.0, math.nan, True), (1.0, math.inf, True)]
    + [(value, other, False) for value in (math.nan, math.inf) for other in (1.0, math.nan, math.inf)],
)
def test_a_loss_that_is_not_finite_is_higher_than_any_other(loss, other, lower):
    assert is_lower(loss, other) is lower
