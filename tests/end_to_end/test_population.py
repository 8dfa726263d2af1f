"""Several outputs a class: snnTorch's population codes, solved as its losses and its accuracy sum them, or refused."""

import pytest
import snntorch.functional as SF
import torch
from torch import nn

from snn_recon_plugin import ReadoutWarning, convex_init_
from snn_recon_plugin.stages.stream import split_samples

from ..helpers import CLASSES, TRAIN, batches, test_data, train_data
from .own_tests import loop_of, loud, own_test, spikes_of

OPTIONS = {"hidden": "keep", "strength": 1e-3}
PER_CLASS = 4
POPULATION = {"population_code": True, "num_classes": CLASSES}
POPULATIONS = {
    "squared counts": {"loss": SF.mse_count_loss(0.8, 0.2, **POPULATION)},
    "cross-entropy of counts": {"loss": SF.ce_count_loss(**POPULATION)},
    "another loss": {"classes": CLASSES},
}


def population(reset="subtract", bias=True):
    torch.manual_seed(0)
    net = loud(loop_of(reset, classes=PER_CLASS * CLASSES))
    for neuron in (net.lif1, net.lif2):
        neuron.beta.fill_(0.95)  # as in the tutorial
    if not bias:
        net.fc2.bias = None
    return net


@pytest.mark.parametrize(("name", "bias"), [("squared counts", True), ("cross-entropy of counts", False), ("another loss", True)])
def test_a_population_code_is_decided_by_the_sums_of_its_outputs(name, bias):
    net = population(bias=bias)
    held = split_samples(TRAIN, 0.2, 0).heldout
    before = own_test(net, spikes_of, train_data(), held, **POPULATION)
    report = convex_init_(net, batches(), **OPTIONS, **POPULATIONS[name])
    assert report.readout.decided_by == f"spike count of output[0], summed over {PER_CLASS} outputs a class"
    assert report.accuracy_before == pytest.approx(before)
    assert report.accuracy_written == pytest.approx(own_test(net, spikes_of, train_data(), **POPULATION))
    assert own_test(net, spikes_of, test_data(), **POPULATION) > max(0.75, report.accuracy_after - 0.08)
    assert report.certificate.reached


def test_the_program_of_a_population_code_is_that_of_one_output_a_class():
    """Membranes that never reset: the class's sum is linear in its outputs' mean weights, whatever else these differ in."""
    net = population(reset="none")
    report = convex_init_(net, batches(200), classes=CLASSES, readout="membrane_sum", fit_loss="same", **OPTIONS)
    assert report.exactness.label == "exact"
    inputs, labels = train_data(200)
    with torch.no_grad():
        scores = net(inputs)[1].sum(0).unflatten(1, (CLASSES, PER_CLASS)).sum(2).double()
        weight = net.fc2.weight.unflatten(0, (CLASSES, PER_CLASS)).double()
    value = float(nn.functional.cross_entropy(scores, labels) + 0.5e-3 * weight.mean(1).square().sum())
    assert report.certificate.primal == pytest.approx(value, rel=1e-5)
    assert report.accuracy_written == pytest.approx(float((scores.argmax(1) == labels).double().mean()))
    # Outputs of a class that were alike would stay so in training.
    assert float(weight.std(1).mean(1).min()) > 0


def test_training_goes_on_from_a_lower_loss():
    """Of scales and shifts that decide alike the user's own loss of counts chooses."""
    loss, net, (inputs, labels) = SF.mse_count_loss(1.0, 0.0, **POPULATION), population(), train_data()
    with torch.no_grad():
        before = float(loss(net(inputs)[0], labels))
        report = convex_init_(net, batches(), loss=loss, **OPTIONS)
        assert float(loss(net(inputs)[0], labels)) < 0.6 * before
    assert report.after.loss < 0.6 * report.before.loss


def test_classes_that_the_first_batch_or_all_batches_lack():
    inputs, labels = train_data(300)
    order = labels.argsort(stable=True)
    loader = list(zip(inputs[order].split(50), labels[order].split(50), strict=True))
    torch.manual_seed(0)  # ten outputs for ten classes, of which the first batch shows two
    assert convex_init_(loud(loop_of()), loader, **OPTIONS).accuracy_written > 0.5
    torch.manual_seed(0)
    net, loader = loud(loop_of()), first_classes(3)
    report = convex_init_(net, loader, classes=10, **OPTIONS)
    assert report.accuracy_written == pytest.approx(own_test(net, spikes_of, loader[0]))


def first_classes(count):
    inputs, labels = train_data()
    return [(inputs[labels < count], labels[labels < count])]


def test_outputs_of_which_more_than_half_have_labels_are_a_class_each():
    torch.manual_seed(0)
    assert convex_init_(loud(loop_of()), first_classes(6), **OPTIONS).accuracy_written > 0.5


def test_membranes_of_classes_that_do_not_occur_are_fitted_with_a_warning():
    torch.manual_seed(0)
    net, loader = loud(loop_of(reset="none")), first_classes(3)
    with pytest.warns(ReadoutWarning, match=r"10 outputs of 'fc2', and labels from 0 to 2 alone: fitted as 10 classes") as caught:
        report = convex_init_(net, loader, **OPTIONS)
    assert "classes=10 if each output is a class" in str(caught[0].message)
    assert report.accuracy_written > 0.9
