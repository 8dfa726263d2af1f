"""The factor of the written readout, from which training goes on."""

import math

import pytest
import snntorch as snn
import torch
from torch import nn

from snn_recon_plugin import convex_init_
from snn_recon_plugin.options import Options
from snn_recon_plugin.stages.factor import LARGEST, choose_factor, relative_size
from snn_recon_plugin.stages.initialize import initialize_network
from snn_recon_plugin.stages.run import Context

from ..helpers import CLASSES, batches, loop_net, mean_membrane, test_data, train_data
from ..nets import BETA, spikes_and_membranes


@pytest.mark.parametrize(
    ("size", "accuracies", "factor"),
    [
        (0.5, (0.9, 0.9, 0.9), 1.0),
        (3.0, (0.9, 0.9, 0.9), 1.0),
        (3.1, (0.9, 0.9, 0.9), 0.5),
        (6.0, (0.9, 0.9, 0.9), 0.5),
        (6.1, (0.9, 0.9, 0.9), 0.25),
        (100.0, (0.9, 0.9, 0.9), 0.25),  # halved at most twice
        (100.0, (0.9, 0.896, 0.896), 0.25),
        (100.0, (0.9, 0.896, 0.894), 0.5),
        (100.0, (0.9, 0.894, 0.9), 1.0),  # the second is not tried
        (100.0, (0.9, math.nan, 0.9), 1.0),
        (100.0, (math.nan, math.nan, 0.9), 1.0),
    ],
)
def test_a_large_readout_is_halved_while_it_is_as_accurate_within_half_a_point(size, accuracies, factor):
    found = dict(zip((1.0, 0.5, 0.25), accuracies, strict=True))
    for given in (lambda tried: [found[tried]], lambda tried: [found[tried], 0.95], lambda tried: [0.95, found[tried]]):
        assert choose_factor(size, given) == factor


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
    assert report.accuracy_after == report.solved.accuracy
    assert report.after.loss > report.solved.loss
    report.write_solved()
    assert torch.equal(smaller, report.factor * mean_membrane(net, test_data()[0]))


def test_counts_of_spikes_decide_about_as_well():
    net = loop_net(hidden=200, steps=20, output=snn.Leaky(beta=BETA), decode=spikes_and_membranes)
    report = convex_init_(net, batches(), hidden="keep", fit_loss="squared_hinge", holdout=0.4)
    assert report.factor < 1
    assert report.accuracy_after >= report.solved.accuracy - 0.005
    assert report.exactness.agreement > 0.5  # of the smaller readout, which was verified
    assert torch.equal(net.fc2.weight, report.factor * report.solved_weights["fc2.weight"])
    report.write_solved()
    inputs, labels = train_data()
    solved = float((net(inputs)[0].sum(0).argmax(1) == labels).double().mean())
    assert report.accuracy_written >= solved - 0.005


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
    assert torch.equal(net.fc2.weight, report.solved_weights["fc2.weight"])
    assert report.after.loss == report.solved.loss
