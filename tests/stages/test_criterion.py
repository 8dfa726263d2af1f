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


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def labels():
    return torch.arange(SAMPLES) % CLASSES


def program_loss(criterion, scores, targets):
    """Mean loss of rows as the program has it, weighted by class."""
    loss = criterion.make(STEPS)
    values = loss.value(scores.double(), loss.prepare(targets, scores.shape[1]))
    weights = criterion.weights(targets)
    return float(values.mean() if weights is None else (weights @ values) / weights.sum())


CLASS_WEIGHT = torch.tensor([1.0, 2.0, 0.5, 3.0])
# Name: the user's loss, and what the program's is times it.
OF_SCORES = {
    "cross entropy": (nn.CrossEntropyLoss(), 1.0),
    "weighted cross entropy": (nn.CrossEntropyLoss(weight=CLASS_WEIGHT), 1.0),
    "smoothed labels": (nn.CrossEntropyLoss(label_smoothing=0.3), 1.0),
    "function": (F.cross_entropy, 1.0),
}


@pytest.mark.parametrize("name", OF_SCORES)
def test_losses_of_scores_and_labels(name, labels):
    user, factor = OF_SCORES[name]
    scores = torch.randn(SAMPLES, CLASSES)
    criterion = criterion_of(user)
    assert criterion.decoding is None
    assert program_loss(criterion, scores, labels) == pytest.approx(factor * float(user(scores, labels)), rel=1e-5)


def test_a_loss_of_log_probabilities(labels):
    scores = torch.randn(SAMPLES, CLASSES).log_softmax(1)
    user = nn.NLLLoss(weight=CLASS_WEIGHT)
    assert program_loss(criterion_of(user), scores, labels) == pytest.approx(float(user(scores, labels)), rel=1e-5)
    assert isinstance(criterion_of(F.nll_loss).make(STEPS), CrossEntropy)


@pytest.mark.parametrize("user", [nn.MSELoss(), F.mse_loss])
def test_regression(user):
    scores, targets = torch.randn(SAMPLES, 2), torch.randn(SAMPLES, 2)
    # The mean over outputs instead of their sum, and no half.
    assert program_loss(criterion_of(user), scores, targets) == pytest.approx(2 / 2 * float(user(scores, targets)), rel=1e-5)


@pytest.mark.parametrize(
    ("user", "factor"),
    [(nn.HuberLoss(delta=0.4), 2.0), (F.huber_loss, 2.0), (nn.SmoothL1Loss(beta=0.4), 2.0 * 0.4), (F.smooth_l1_loss, 2.0)],
)
def test_regression_that_is_linear_far_off(user, factor):
    scores, targets = 2 * torch.randn(SAMPLES, 2), torch.randn(SAMPLES, 2)
    assert program_loss(criterion_of(user), scores, targets) == pytest.approx(factor * float(user(scores, targets)), rel=1e-5)


@pytest.mark.parametrize("user", [nn.BCEWithLogitsLoss(), nn.MultiLabelSoftMarginLoss(), F.multilabel_soft_margin_loss])
def test_indicators(user):
    scores, targets = torch.randn(SAMPLES, CLASSES), torch.randint(0, 2, (SAMPLES, CLASSES))
    expected = CLASSES * float(user(scores, targets.float()))
    assert program_loss(criterion_of(user), scores, targets) == pytest.approx(expected, rel=1e-5)


# Name: the user's loss, its reading, and the program's value as a multiple of the user's.
OVER_TIME = {
    "rate": (SF.ce_rate_loss(), "per_step", 1.0),
    "weighted rate": (SF.ce_rate_loss(weight=CLASS_WEIGHT), "per_step", None),
    "count": (SF.ce_count_loss(), "sum", 1.0),
    "maximum": (SF.ce_max_membrane_loss(), "max", 1.0),
    "squared count": (SF.mse_count_loss(correct_rate=0.7, incorrect_rate=0.25), "sum", CLASSES * STEPS / 2),
    "squared membrane": (SF.mse_membrane_loss(on_target=1.5, off_target=0.25), "per_step", CLASSES / 2),
    "squared membrane below zero": (SF.mse_membrane_loss(on_target=1.5, off_target=-0.5), "per_step", CLASSES / 2),
    "squared membrane, off above on": (SF.mse_membrane_loss(on_target=1, off_target=2), "per_step", CLASSES / 2),
}
READ = {"sum": lambda values: values.sum(0), "max": lambda values: values.amax(0)}


@pytest.mark.parametrize("name", OVER_TIME)
def test_losses_of_values_over_time(name, labels):
    user, reading, factor = OVER_TIME[name]
    criterion, values = criterion_of(user), torch.randn(STEPS, SAMPLES, CLASSES)
    assert criterion.decoding == reading
    if reading == "per_step":
        mine = sum(program_loss(criterion, step, labels) for step in values) / STEPS
    else:
        mine = program_loss(criterion, READ[reading](values), labels)
    if factor is None:  # snnTorch multiplies by the weights without dividing by their sum
        factor = 1 / float(CLASS_WEIGHT[labels].mean())
    assert mine == pytest.approx(factor * float(user(values, labels)), rel=1e-5)


@pytest.mark.parametrize(
    ("user", "factor"),
    [
        (SF.mse_count_loss(0.8, 0.2, population_code=True, num_classes=CLASSES), CLASSES * STEPS / 2),
        (SF.ce_count_loss(population_code=True, num_classes=np.int64(CLASSES)), 1.0),
    ],
)
def test_population_codes(user, factor, labels):
    """Three outputs a class: the loss of their sums, whose target counts are those of all three."""
    per_class, criterion = 3, criterion_of(user)
    spikes = torch.bernoulli(torch.full((STEPS, SAMPLES, CLASSES * per_class), 0.3))
    loss, sums = criterion.make(STEPS * per_class), spikes.sum(0).unflatten(1, (CLASSES, per_class)).sum(2).double()
    value = float(loss.value(sums, loss.prepare(labels, CLASSES)).mean())
    assert criterion.num_classes == CLASSES
    assert value == pytest.approx(factor * float(user(spikes, labels)), rel=1e-5)


def test_targets_on_and_off_still_count_as_classes(labels):
    loss = criterion_of(SF.mse_count_loss(correct_rate=0.8, incorrect_rate=0.2)).make(STEPS)
    problem = Problem(Features(torch.randn(SAMPLES, 3)), labels, loss=loss, penalty="ridge", num_outputs=CLASSES)
    assert problem.classifies
    assert set(problem.targets.unique().tolist()) == {1.0, 4.0}
    assert accuracy_of(loss, F.one_hot(labels, CLASSES).double(), problem.targets) == 1.0


def test_regression_targets_of_a_squared_loss_with_on_and_off_are_left_alone():
    targets = torch.randn(SAMPLES, CLASSES)
    prepared = criterion_of(SF.mse_membrane_loss(on_target=5)).make(STEPS).prepare(targets, CLASSES)
    assert torch.equal(prepared, targets.double())


def test_the_label_that_torch_ignores():
    assert criterion_of(nn.CrossEntropyLoss()).ignored == criterion_of(F.nll_loss).ignored == -100
    assert criterion_of(nn.CrossEntropyLoss(ignore_index=3)).ignored == 3
    assert criterion_of("cross_entropy").ignored is criterion_of(nn.MultiMarginLoss(p=2)).ignored is None


def test_negative_labels_have_no_class_weight():
    with pytest.raises(DataError, match="labels from -1"):
        criterion_of(nn.CrossEntropyLoss(weight=CLASS_WEIGHT)).weights(torch.tensor([0, -1, 2]))


@pytest.mark.parametrize("loss", [nn.MultiMarginLoss(margin=0.7), nn.functional.multi_margin_loss])
def test_a_margin_loss_is_solved_as_squared_hinge_and_says_so(loss):
    criterion = criterion_of(loss)
    assert criterion.name == "MultiMarginLoss, as squared_hinge"
    assert criterion.make(1).name == "squared_hinge"


@pytest.mark.parametrize("name", ["cross_entropy", "squared_hinge"])
def test_names(name):
    criterion = criterion_of(name)
    assert (criterion.name, criterion.make(3).name, criterion.decoding, criterion.class_weights) == (name, name, None, None)


REFUSED = {
    "smoothed labels, weighted": (nn.CrossEntropyLoss(CLASS_WEIGHT, label_smoothing=0.1), "label_smoothing=0.1 with weight="),
    "weights that are NaN": (nn.CrossEntropyLoss(weight=CLASS_WEIGHT * float("nan")), "class weights of CrossEntropyLoss"),
    "negative weights": (nn.MultiMarginLoss(weight=CLASS_WEIGHT - 1), "class weights of MultiMarginLoss"),
    "negative weights of snnTorch": (SF.ce_rate_loss(weight=-CLASS_WEIGHT), "class weights of ce_rate_loss"),
    "no weight at all": (nn.NLLLoss(weight=torch.zeros(4)), "class weights of NLLLoss"),
    "population code of a rate": (SF.ce_rate_loss(population_code=True, num_classes=2), "population_code"),
    "weighted squares": (SF.mse_count_loss(weight=CLASS_WEIGHT), "weight="),
    "targets over time": (SF.mse_membrane_loss(time_var_targets=True), "mse_membrane_loss"),
    "spike times": (SF.ce_temporal_loss(), "ce_temporal_loss"),
    "an absolute error": (nn.SmoothL1Loss(beta=0.0), "beta=0 in SmoothL1Loss"),
    "another loss of torch": (nn.L1Loss(), "L1Loss"),
    "weighted indicators": (nn.BCEWithLogitsLoss(pos_weight=torch.ones(2)), "pos_weight= in BCEWithLogitsLoss"),
    "weighted outputs": (nn.MultiLabelSoftMarginLoss(weight=torch.ones(2)), "weight= in MultiLabelSoftMarginLoss"),
    "a class": (nn.CrossEntropyLoss, "CrossEntropyLoss"),
    "a function": (lambda scores, targets: 0, "<lambda>"),
    "a loss of the convex room": (CrossEntropy(), "a name"),
    "nothing": (None, "loss=None"),
    "an unhashable object": ([], "list"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_losses_that_no_program_has(name):
    loss, word = REFUSED[name]
    with pytest.raises(OptionError, match=word) as caught:
        ConvexInitializer(loss=loss)
    assert caught.value.needed
    assert "loss" in caught.value.fix


INSTEAD = {
    "a class of torch": (nn.CrossEntropyLoss, "loss=nn.CrossEntropyLoss()"),
    "a class of snnTorch": (SF.ce_rate_loss, "loss=SF.ce_rate_loss()"),
    "an absolute error": (nn.L1Loss(), "loss=nn.HuberLoss()"),
    "its function": (F.l1_loss, "loss=nn.HuberLoss()"),
    "its class": (nn.L1Loss, "loss=nn.HuberLoss()"),
    "probabilities": (nn.BCELoss(), "loss=nn.BCEWithLogitsLoss()"),
    "spike times": (SF.mse_temporal_loss(), "readout='first_spike'"),
    "weights of torch": (nn.NLLLoss(weight=-CLASS_WEIGHT), "loss=nn.NLLLoss(weight=...)"),
    "weights of snnTorch": (SF.ce_rate_loss(weight=-CLASS_WEIGHT), "loss=SF.ce_rate_loss(weight=...)"),
}


@pytest.mark.parametrize("name", INSTEAD)
def test_what_to_type_instead(name):
    loss, fix = INSTEAD[name]
    with pytest.raises(OptionError) as caught:
        criterion_of(loss)
    assert fix in caught.value.fix


@pytest.mark.parametrize(
    "targets",
    [torch.tensor([0, 4]), torch.rand(2, CLASSES), torch.rand(2)],
    ids=["a class without a weight", "rows", "numbers"],
)
def test_class_weights_that_fit_no_target(targets):
    with pytest.raises(OptionError, match="4 class weights in CrossEntropyLoss"):
        criterion_of(nn.CrossEntropyLoss(weight=CLASS_WEIGHT)).weights(targets)


def test_class_weights_of_labels():
    weights = criterion_of(nn.CrossEntropyLoss(weight=CLASS_WEIGHT)).weights(torch.tensor([3, 0], dtype=torch.uint8))
    assert weights.tolist() == [3.0, 1.0]
    assert criterion_of("hinge").weights(torch.tensor([1])) is None


def test_values_are_no_labels_of_a_margin_loss():
    with pytest.raises(DataError):
        criterion_of(nn.MultiMarginLoss(p=2)).make(1).prepare(torch.tensor([0.5]), CLASSES)
