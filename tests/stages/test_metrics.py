"""Metrics of held-out scores, against those of scikit-learn and torchmetrics."""

import pytest
import torch
from sklearn import metrics as sk
from torch import nn
from torchmetrics.classification import MultilabelExactMatch, MultilabelF1Score
from torchmetrics.regression import R2Score

from snn_recon_plugin import convex_init_
from snn_recon_plugin.convex import make_loss
from snn_recon_plugin.report.rows import METRICS
from snn_recon_plugin.stages.scores import measure_metrics
from snn_recon_plugin.stages.stream import split_samples

from ..helpers import CLASSES, loop_net, mean_membrane, train_data

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
        assert ("balanced accuracy" in text) is ("the largest class is 2.5 times the smallest" in text) is shown
