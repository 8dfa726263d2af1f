"""The factor of the written readout, from which training goes on."""

import math

import pytest
import torch
from torch import nn

from snn_recon_plugin import convex_init_
from snn_recon_plugin.stages import Context, Options, initialize_network
from snn_recon_plugin.stages.factor import LARGEST, choose_factor, relative_size, standard_error
from snn_recon_plugin.stages.fit import HeldOut

from ..helpers import CLASSES, batches, loop_net, mean_membrane, test_data
from ..nets import shallow, spikes_and_membranes


@pytest.mark.parametrize(
    ("size", "accuracies", "factor"),
    [
        (0.5, (0.9, 0.9, 0.9), 1.0),
        (3.0, (0.9, 0.9, 0.9), 1.0),
        (3.1, (0.9, 0.9, 0.9), 0.5),
        (6.0, (0.9, 0.9, 0.9), 0.5),
        (6.1, (0.9, 0.9, 0.9), 0.25),
        (100.0, (0.9, 0.9, 0.9), 0.25),  # halved at most twice
        (100.0, (0.9, 0.88, 0.88), 0.25),  # 100 samples have a standard error of 0.03
        (100.0, (0.9, 0.88, 0.86), 0.5),
        (100.0, (0.9, 0.86, 0.9), 1.0),  # the second is not tried
        (100.0, (0.9, math.nan, 0.9), 1.0),
        (100.0, (math.nan, math.nan, 0.9), 1.0),
    ],
)
def test_a_large_readout_is_halved_while_it_is_as_accurate_within_one_standard_error(size, accuracies, factor):
    found = {tried: HeldOut(0.0, one, one, 100) for tried, one in zip((1.0, 0.5, 0.25), accuracies, strict=True)}
    assert choose_factor(size, found.__getitem__) == factor


def test_a_fresh_layer_has_about_the_size_one():
    torch.manual_seed(0)
    layer = nn.Linear(200, 50)
    assert relative_size(layer.weight, layer.bias) == pytest.approx(1.0, abs=0.02)
    assert relative_size(2 * layer.weight, None) == pytest.approx(2.0, abs=0.02)


def size(net):
    return relative_size(net.fc2.weight, net.fc2.bias)


def test_an_exact_readout_decides_alike():
    net = loop_net(hidden=200)
    report = convex_init_(net, batches(), hidden="keep")
    assert report.factor in (0.5, 0.25)
    assert size(net) <= LARGEST or report.factor == 0.25
    smaller = mean_membrane(net, test_data()[0])
    assert report.accuracy_after == report.solved_accuracy
    assert report.loss_after > report.solved_loss
    report.write_solved()
    assert torch.equal(smaller, report.factor * mean_membrane(net, test_data()[0]))


def test_counts_of_spikes_decide_about_as_well():
    net = shallow(spikes_and_membranes, reset_mechanism="subtract")
    report = convex_init_(net, batches(), hidden="keep", fit_loss="squared_hinge")
    allowed = standard_error(HeldOut(0.0, report.solved_accuracy, 0.0, report.heldout))
    assert report.factor < 1
    assert report.accuracy_after >= report.solved_accuracy - allowed
    assert report.exactness.agreement > 0.5  # of the smaller readout, which was verified
    assert torch.equal(net.fc2.weight, report.factor * report.solved["fc2.weight"])


@pytest.mark.parametrize(
    ("options", "trains_on"),
    [
        ({"strength": 1e-5}, True),  # the caller determines the program
        ({"fit_loss": "same"}, True),
        ({"allow_tied": True}, True),  # perhaps another layer's
        ({"loss": nn.MSELoss()}, True),  # values keep their size
        ({}, False),
    ],
    ids=["strength", "loss", "tied", "values", "not trained on"],
)
def test_other_large_readouts_are_written_as_they_were_solved(options, trains_on):
    net, data = loop_net(hidden=200), batches()
    if "loss" in options:
        data = [(inputs, 100 * nn.functional.one_hot(labels, CLASSES).float()) for inputs, labels in data]
    report = initialize_network(net, data, Options(hidden="keep", **options), Context(trains_on=trains_on))
    assert report.factor == 1.0
    assert size(net) > LARGEST
    assert torch.equal(net.fc2.weight, report.solved["fc2.weight"])
    assert report.loss_after == report.solved_loss
