"""The judge of scores, against formulas: losses, decisions, and the scale with the least loss."""

import math

import pytest
import torch
from sklearn import metrics as sk
from torch import nn
from torch.nn import functional as F
from torchmetrics.classification import MultilabelExactMatch, MultilabelF1Score
from torchmetrics.regression import R2Score

from snn_recon_plugin import convex_init_
from snn_recon_plugin.convex import make_loss
from snn_recon_plugin.report.rows import METRICS
from snn_recon_plugin.stages.scores import Judge, RowsPerSample, best_scale, is_lower, measure_metrics
from snn_recon_plugin.stages.stream import split_samples

from ..helpers import CLASSES, loop_net, mean_membrane, train_data


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


# -- metrics, against those of scikit-learn and torchmetrics ----------------------------------------------------------------
ROWS, OUTPUTS = 90, 4


def draw(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


CLASS_SCORES, LABEL_SCORES, VALUE_SCORES = draw(ROWS, OUTPUTS), draw(ROWS, OUTPUTS) + 0.5, draw(ROWS, OUTPUTS)
CLASS_TARGETS = torch.arange(ROWS) % 7 % 3  # the last class does not occur
LABELS = (LABEL_SCORES.roll(1, 0) + LABEL_SCORES > 0.5).double()
LABELS[:, 3] = 0  # an output without a label
VALUES = 100 + VALUE_SCORES.roll(1, 0) * torch.tensor([1.0, 2.0, 3.0, 0.5])
SCORED = VALUES + VALUE_SCORES

# loss, scores, the user's targets, and for each metric what it must be
CASES = {
    "classes": (
        "cross_entropy",
        CLASS_SCORES,
        CLASS_TARGETS,
        {"balanced_accuracy": sk.recall_score(CLASS_TARGETS, CLASS_SCORES.argmax(1), average="macro", labels=[0, 1, 2])},
    ),
    "two classes of one output": (
        "logistic",
        CLASS_SCORES[:, :1],
        CLASS_TARGETS.clamp_max(1),
        {"balanced_accuracy": sk.balanced_accuracy_score(CLASS_TARGETS.clamp_max(1), CLASS_SCORES[:, 0] > 0)},
    ),
    "labels": (
        "logistic",
        LABEL_SCORES,
        LABELS,
        {
            "macro_f1": float(MultilabelF1Score(OUTPUTS, average="macro")((LABEL_SCORES > 0).long(), LABELS.long())),
            "subset_accuracy": float(MultilabelExactMatch(OUTPUTS)((LABEL_SCORES > 0).long(), LABELS.long())),
        },
    ),
    "values": (
        "squared",
        SCORED,
        VALUES,
        {
            "r2": float(R2Score(multioutput="uniform_average")(SCORED, VALUES)),
            "rmse": sk.root_mean_squared_error(VALUES, SCORED),
            "mae": sk.mean_absolute_error(VALUES, SCORED),
        },
    ),
}


def test_every_metric_has_a_case():
    assert {name for _, _, _, expected in CASES.values() for name in expected} == set(METRICS)


@pytest.mark.parametrize("name", CASES)
def test_a_metric_is_that_of_other_packages(name):
    loss, scores, targets, expected = CASES[name]
    loss = make_loss(loss)
    prepared, classifies = loss.prepare(targets, scores.shape[1]), not targets.is_floating_point()
    found = measure_metrics(loss, scores, prepared, classifies)
    assert found == pytest.approx(expected, abs=1e-6 if name == "labels" else 1e-9)  # torchmetrics counts in float32


@pytest.mark.parametrize(("offset", "expected"), [(0.0, 1.0), (0.1, 0.0)])
def test_r2_of_constant_targets_is_that_of_scikit_learn(offset, expected):
    targets = torch.full((7, 1), 0.5, dtype=torch.float64)
    found = measure_metrics(make_loss("squared"), targets + offset, targets, classifies=False)
    assert found["r2"] == expected == sk.r2_score(targets, targets + offset)


# -- of a report -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["classes", "labels", "values"])
def test_the_report_has_those_of_the_net_on_held_out_samples(kind):
    inputs, labels = train_data(300)
    held, net = split_samples(300, 0.2, 0).heldout, loop_net()
    scores = mean_membrane(net, inputs[held]).double()
    if kind == "classes":
        loss, targets = nn.CrossEntropyLoss(), labels
        expected = {"balanced_accuracy": sk.balanced_accuracy_score(targets[held], scores.argmax(1))}
    elif kind == "labels":
        loss, targets = nn.BCEWithLogitsLoss(), torch.stack([(labels % (k + 2) == 0).float() for k in range(CLASSES)], 1)
        expected = {
            "macro_f1": sk.f1_score(targets[held], scores > 0, average="macro", zero_division=0),
            "subset_accuracy": sk.accuracy_score(targets[held], scores > 0),
        }
    else:
        loss, targets = nn.MSELoss(), inputs[:, :CLASSES] + 3 * inputs[:, CLASSES : 2 * CLASSES]
        expected = {
            "r2": sk.r2_score(targets[held], scores),
            "rmse": sk.root_mean_squared_error(targets[held], scores),
            "mae": sk.mean_absolute_error(targets[held], scores),
        }
    report = convex_init_(net, [(inputs, targets)], loss=loss, hidden="keep", progress=False)
    assert report.before.metrics == pytest.approx(expected, abs=1e-5)
    assert set(report.after.metrics) == set(expected)
    for name, after in report.after.metrics.items():
        assert (after > report.before.metrics[name]) is (name not in ("rmse", "mae"))
    titles = [METRICS[name][0] for name in expected if name != "balanced_accuracy" or report.imbalance > 2]
    assert all(title in report.details() and title in str(report) for title in titles)


def test_the_error_of_one_value_at_every_step_is_that_of_the_loss():
    inputs, labels = train_data(200)
    net = loop_net(outputs=1)
    targets = labels.float()[:, None, None] + torch.linspace(0, 1, 8)[:, None]
    report = convex_init_(net, [(inputs, targets)], loss=nn.MSELoss(), readout="membrane_per_step", hidden="keep", strength=1e-2)
    assert report.after.metrics["rmse"] ** 2 / 2 == pytest.approx(report.after.loss, rel=1e-9)
    assert report.before.metrics["rmse"] ** 2 / 2 == pytest.approx(report.before.loss, rel=1e-9)


@pytest.mark.parametrize(("sizes", "shown"), [((50, 50, 26), False), ((50, 50, 20), True)])
def test_uneven_classes_show_their_balanced_accuracy(sizes, shown):
    inputs, labels = train_data()
    rows = torch.cat([(labels == label).nonzero()[:size, 0] for label, size in enumerate(sizes)])
    report = convex_init_(loop_net(outputs=3), [(inputs[rows], labels[rows])], hidden="keep", strength=1e-2)
    assert report.imbalance == max(sizes) / min(sizes)
    for text in (str(report), report.details()):
        assert ("balanced accuracy" in text) is ("(of classes held out; largest 2.5 times the smallest)" in text) is shown
