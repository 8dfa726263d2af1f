"""The losses that users train with: their own values are those of the program, up to a factor that moves the strength alone."""

import numpy as np
import pytest
import snntorch.functional as SF
import torch
from torch import nn
from torch.nn import functional as F

from snn_recon_plugin import ConvexInitializer
from snn_recon_plugin.convex import CrossEntropy, Features, Problem, accuracy_of
from snn_recon_plugin.errors import DataError, OptionError
from snn_recon_plugin.stages.criterion import criterion_of

STEPS, SAMPLES, CLASSES = 5, 24, 4
CLASS_WEIGHT = torch.tensor([1.0, 2.0, 0.5, 3.0])
LABELS = torch.arange(SAMPLES) % CLASSES


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def program_loss(criterion, scores, targets):
    """Mean loss of rows as the program has it, weighted by class."""
    loss = criterion.loss_for_steps(STEPS)
    values = loss.value(scores.double(), loss.prepare(targets, scores.shape[1]))
    weights = criterion.label(targets).weights
    return float(values.mean() if weights is None else (weights @ values) / weights.sum())


# Scores and targets.
DRAW = {
    "labels": lambda: (torch.randn(SAMPLES, CLASSES), LABELS),
    "log-probabilities": lambda: (torch.randn(SAMPLES, CLASSES).log_softmax(1), LABELS),
    "values": lambda: (2 * torch.randn(SAMPLES, 2), torch.randn(SAMPLES, 2)),
    "indicators": lambda: (torch.randn(SAMPLES, CLASSES), torch.randint(0, 2, (SAMPLES, CLASSES)).float()),
}
# The user's loss, what it takes, and what the program's value is times it.
OF_SCORES = [
    (nn.CrossEntropyLoss(), "labels", 1.0),
    (nn.CrossEntropyLoss(weight=CLASS_WEIGHT), "labels", 1.0),
    (nn.CrossEntropyLoss(label_smoothing=0.3), "labels", 1.0),
    # Torch divides by the weights of the labels, the program by those of the smoothed targets: the same for as many of each class.
    (nn.CrossEntropyLoss(CLASS_WEIGHT, label_smoothing=0.3), "labels", 1.0),
    (F.cross_entropy, "labels", 1.0),
    (nn.NLLLoss(weight=CLASS_WEIGHT), "log-probabilities", 1.0),
    (F.nll_loss, "log-probabilities", 1.0),
    (nn.MSELoss(), "values", 2 / 2),  # the mean over outputs instead of their sum, and no half
    (F.mse_loss, "values", 2 / 2),
    (nn.HuberLoss(delta=0.4), "values", 2.0),
    (F.huber_loss, "values", 2.0),
    (nn.SmoothL1Loss(beta=0.4), "values", 2.0 * 0.4),
    (F.smooth_l1_loss, "values", 2.0),
    (nn.BCEWithLogitsLoss(), "indicators", CLASSES),
    (nn.BCEWithLogitsLoss(pos_weight=torch.tensor(4.0)), "indicators", CLASSES),
    (nn.BCEWithLogitsLoss(CLASS_WEIGHT, pos_weight=CLASS_WEIGHT.flip(0)), "indicators", CLASSES),
    (nn.MultiLabelSoftMarginLoss(CLASS_WEIGHT), "indicators", CLASSES),
    (nn.MultiLabelSoftMarginLoss(), "indicators", CLASSES),
    (F.multilabel_soft_margin_loss, "indicators", CLASSES),
]


@pytest.mark.parametrize(("user", "kind", "factor"), OF_SCORES)
def test_losses_of_scores(user, kind, factor):
    scores, targets = DRAW[kind]()
    criterion = criterion_of(user)
    assert criterion.decoding is None
    assert program_loss(criterion, scores, targets) == pytest.approx(factor * float(user(scores, targets)), rel=1e-5)


# Name: the user's loss, its reading, and the program's value as a multiple of the user's.
OVER_TIME = {
    "rate": (SF.ce_rate_loss(), "per_step", 1.0),
    # snnTorch multiplies by the weights without dividing by their sum.
    "weighted rate": (SF.ce_rate_loss(weight=CLASS_WEIGHT), "per_step", 1 / float(CLASS_WEIGHT[LABELS].mean())),
    "count": (SF.ce_count_loss(), "sum", 1.0),
    "maximum": (SF.ce_max_membrane_loss(), "max", 1.0),
    "squared count": (SF.mse_count_loss(correct_rate=0.7, incorrect_rate=0.25), "sum", CLASSES * STEPS / 2),
    "squared membrane": (SF.mse_membrane_loss(on_target=1.5, off_target=0.25), "per_step", CLASSES / 2),
    "squared membrane below zero": (SF.mse_membrane_loss(on_target=1.5, off_target=-0.5), "per_step", CLASSES / 2),
    "squared membrane, off above on": (SF.mse_membrane_loss(on_target=1, off_target=2), "per_step", CLASSES / 2),
}
READ = {"sum": lambda values: [values.sum(0)], "max": lambda values: [values.amax(0)], "per_step": list}


@pytest.mark.parametrize("name", OVER_TIME)
def test_losses_of_values_over_time(name):
    user, reading, factor = OVER_TIME[name]
    criterion, values = criterion_of(user), torch.randn(STEPS, SAMPLES, CLASSES)
    assert criterion.decoding == reading
    mine = np.mean([program_loss(criterion, scores, LABELS) for scores in READ[reading](values)])
    assert mine == pytest.approx(factor * float(user(values, LABELS)), rel=1e-5)


@pytest.mark.parametrize(
    ("user", "factor"),
    [
        (SF.mse_count_loss(0.8, 0.2, population_code=True, num_classes=CLASSES), CLASSES * STEPS / 2),
        (SF.ce_count_loss(population_code=True, num_classes=np.int64(CLASSES)), 1.0),
    ],
)
def test_population_codes(user, factor):
    """Three outputs a class: the loss of their sums, whose target counts are those of all three."""
    per_class, criterion = 3, criterion_of(user)
    spikes = torch.bernoulli(torch.full((STEPS, SAMPLES, CLASSES * per_class), 0.3))
    loss, sums = criterion.loss_for_steps(STEPS * per_class), spikes.sum(0).unflatten(1, (CLASSES, per_class)).sum(2).double()
    value = float(loss.value(sums, loss.prepare(LABELS, CLASSES)).mean())
    assert criterion.num_classes == CLASSES
    assert value == pytest.approx(factor * float(user(spikes, LABELS)), rel=1e-5)


def test_targets_on_and_off_count_as_classes_and_values_are_left_alone():
    loss = criterion_of(SF.mse_count_loss(correct_rate=0.8, incorrect_rate=0.2)).loss_for_steps(STEPS)
    problem = Problem(Features(torch.randn(SAMPLES, 3)), LABELS, loss=loss, penalty="ridge", num_outputs=CLASSES)
    assert problem.classifies
    assert set(problem.targets.unique().tolist()) == {1.0, 4.0}
    assert accuracy_of(loss, F.one_hot(LABELS, CLASSES).double(), problem.targets) == 1.0
    values = torch.randn(SAMPLES, CLASSES)
    assert torch.equal(loss.prepare(values, CLASSES), values.double())


@pytest.mark.parametrize(
    ("loss", "name", "solved", "ignored"),
    [
        ("cross_entropy", "cross_entropy", "cross_entropy", None),
        ("squared_hinge", "squared_hinge", "squared_hinge", None),
        (nn.CrossEntropyLoss(), "CrossEntropyLoss", "cross_entropy", -100),
        (nn.CrossEntropyLoss(ignore_index=3), "CrossEntropyLoss", "cross_entropy", 3),
        (F.nll_loss, "NLLLoss", "cross_entropy", -100),
        (nn.MultiMarginLoss(margin=0.7), "MultiMarginLoss, as squared_hinge", "squared_hinge", None),
        (nn.MultiMarginLoss(p=2), "MultiMarginLoss, as squared_hinge", "squared_hinge", None),
        (F.multi_margin_loss, "MultiMarginLoss, as squared_hinge", "squared_hinge", None),
    ],
)
def test_names_and_labels_that_are_ignored(loss, name, solved, ignored):
    found = criterion_of(loss)
    assert (found.name, found.loss_for_steps(3).name, found.decoding, found.ignored) == (name, solved, None, ignored)


class Unhashable:
    __hash__ = None

    def __call__(self, scores, targets):
        return 0


# Name: the loss, words of the message, and of what to type.
REFUSED = {
    "smoothed labels, weighted": (nn.CrossEntropyLoss(-CLASS_WEIGHT, label_smoothing=0.1), "class weights of CrossEntropyLoss", ""),
    "weights that are NaN": (nn.CrossEntropyLoss(weight=CLASS_WEIGHT * float("nan")), "class weights of CrossEntropyLoss", ""),
    "negative weights": (nn.MultiMarginLoss(weight=CLASS_WEIGHT - 1), "class weights of MultiMarginLoss", ""),
    "of torch": (nn.NLLLoss(weight=-CLASS_WEIGHT), "class weights of NLLLoss", "loss=nn.NLLLoss(weight=...)"),
    "of snnTorch": (SF.ce_rate_loss(weight=-CLASS_WEIGHT), "class weights of ce_rate_loss", "loss=SF.ce_rate_loss(weight=...)"),
    "no weight at all": (nn.NLLLoss(weight=torch.zeros(4)), "class weights of NLLLoss", ""),
    "population code of a rate": (SF.ce_rate_loss(population_code=True, num_classes=2), "population_code", ""),
    "weighted squares": (SF.mse_count_loss(weight=CLASS_WEIGHT), "weight=", ""),
    "targets over time": (SF.mse_membrane_loss(time_var_targets=True), "mse_membrane_loss", ""),
    "squared spike times": (SF.mse_temporal_loss(), "mse_temporal_loss", "loss=SF.ce_temporal_loss()"),
    "an error that is absolute": (nn.SmoothL1Loss(beta=0.0), "beta=0 in SmoothL1Loss", ""),
    "an absolute error": (nn.L1Loss(), "loss=L1Loss", "loss=nn.HuberLoss()"),
    "its function": (F.l1_loss, "loss=l1_loss", "loss=nn.HuberLoss()"),
    "its class": (nn.L1Loss, "loss=L1Loss", "loss=nn.HuberLoss()"),
    "probabilities": (nn.BCELoss(), "loss=BCELoss", "loss=nn.BCEWithLogitsLoss()"),
    "labels without weight": (nn.BCEWithLogitsLoss(pos_weight=torch.zeros(2)), "pos_weight= in BCEWithLogitsLoss", "torch.ones"),
    "weights of samples": (nn.BCEWithLogitsLoss(torch.ones(9, 1)), "weight= in BCEWithLogitsLoss, of shape (9, 1)", "torch.ones"),
    "a class of torch": (nn.CrossEntropyLoss, "CrossEntropyLoss", "loss=nn.CrossEntropyLoss()"),
    "a class of snnTorch": (SF.ce_rate_loss, "ce_rate_loss", "loss=SF.ce_rate_loss()"),
    "a function": (lambda scores, targets: 0, "<lambda>", ""),
    "a loss of the convex room": (CrossEntropy(smoothing=0.1), "a name", ""),
    "a number": (3, "loss=3", ""),
    "an unhashable object": ([], "list", ""),
    "a callable that can't be hashed": (Unhashable(), "loss=Unhashable", ""),
}


@pytest.mark.parametrize("name", REFUSED)
def test_losses_that_no_program_has(name):
    loss, found, fix = REFUSED[name]
    with pytest.raises(OptionError) as caught:
        ConvexInitializer(loss=loss)
    assert found in str(caught.value)
    assert caught.value.needed
    assert (fix or "loss") in caught.value.fix


@pytest.mark.parametrize(
    ("targets", "error", "word"),
    [
        (torch.tensor([0, 4]), OptionError, "4 class weights in CrossEntropyLoss"),
        (torch.rand(2, CLASSES), OptionError, "4 class weights in CrossEntropyLoss"),
        (torch.rand(2), OptionError, "4 class weights in CrossEntropyLoss"),
        (torch.tensor([0, -1, 2]), DataError, "labels from -1"),
    ],
    ids=["a class without a weight", "rows", "numbers", "negative labels"],
)
def test_class_weights_that_fit_no_target(targets, error, word):
    with pytest.raises(error, match=word):
        criterion_of(nn.CrossEntropyLoss(weight=CLASS_WEIGHT)).label(targets)


@pytest.mark.parametrize(
    "loss", [nn.BCEWithLogitsLoss(pos_weight=CLASS_WEIGHT), nn.CrossEntropyLoss(CLASS_WEIGHT, label_smoothing=0.1)]
)
def test_weights_for_other_outputs(loss):
    with pytest.raises(OptionError, match=r"4 .*weights for 3 outputs"):
        criterion_of(loss).loss_for_steps(1).prepare(torch.tensor([0, 1, 2]), 3)


def test_steps_without_a_label():
    criterion = criterion_of(nn.CrossEntropyLoss(CLASS_WEIGHT))
    targets = torch.tensor([[-100, 1, -100], [3, 0, 2]])
    labels = criterion.label(targets)
    assert labels.labelled.tolist() == [[False, True, False], [True] * 3]
    assert labels.targets.tolist() == [[1, 1, 1], [3, 0, 2]]
    assert labels.weights.tolist() == [[0.0, 2.0, 0.0], [3.0, 1.0, 0.5]]
    assert criterion_of(nn.CrossEntropyLoss()).label(targets).weights.tolist() == [[0.0, 1.0, 0.0], [1.0] * 3]
    assert criterion_of(nn.CrossEntropyLoss()).label(targets[1:]).weights is None


def test_class_weights_of_labels():
    weights = criterion_of(nn.CrossEntropyLoss(weight=CLASS_WEIGHT)).label(torch.tensor([3, 0], dtype=torch.uint8)).weights
    assert weights.tolist() == [3.0, 1.0]
    assert criterion_of("hinge").label(torch.tensor([1])).weights is None


def test_values_are_no_labels_of_a_margin_loss():
    with pytest.raises(DataError):
        criterion_of(nn.MultiMarginLoss(p=2)).loss_for_steps(1).prepare(torch.tensor([0.5]), CLASSES)
