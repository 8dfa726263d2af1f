"""The factor of the written readout, from which training goes on."""

import math

import pytest
import torch
from torch import nn

from snn_recon_plugin import convex_init_
from snn_recon_plugin.stages import Context, Options, initialize_network
from snn_recon_plugin.stages.factor import LARGEST, choose_factor, relative_size, standard_error
from snn_recon_plugin.stages.fit import HeldOut

from ..helpers import accuracy, batches, loop_net, mean_membrane, test_data
from .nets import both, build, one_hot


def results(*accuracies, samples=100):
    """Return the results of the factors 1, 1/2 and 1/4."""
    found = dict(zip((1.0, 0.5, 0.25), accuracies, strict=False))
    return lambda factor: HeldOut(0.0, found[factor], found[factor], samples)


@pytest.mark.parametrize(("size", "factor"), [(0.5, 1.0), (3.0, 1.0), (3.1, 0.5), (6.0, 0.5), (6.1, 0.25), (100.0, 0.25)])
def test_a_large_readout_is_halved_at_most_twice(size, factor):
    assert choose_factor(size, results(0.9, 0.9, 0.9)) == factor


@pytest.mark.parametrize(
    ("accuracies", "factor"),
    [
        ((0.9, 0.88, 0.88), 0.25),  # 100 samples have a standard error of 0.03
        ((0.9, 0.88, 0.86), 0.5),
        ((0.9, 0.86, 0.9), 1.0),  # the second is not tried
        ((0.9, math.nan), 1.0),
        ((math.nan, math.nan), 1.0),
    ],
)
def test_a_smaller_readout_must_be_as_accurate_within_one_standard_error(accuracies, factor):
    assert standard_error(results(0.9)(1.0)) == pytest.approx(0.03)
    assert choose_factor(100.0, results(*accuracies)) == factor


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
    net = build(both, reset="subtract")
    report = convex_init_(net, batches(), hidden="keep", fit_loss="squared_hinge")
    allowed = standard_error(HeldOut(0.0, report.solved_accuracy, 0.0, report.heldout))
    assert report.factor < 1
    assert report.accuracy_after >= report.solved_accuracy - allowed
    assert report.exactness.agreement > 0.5  # of the smaller readout, which was verified
    assert torch.equal(net.fc2.weight, report.factor * report.solved["fc2.weight"])


@pytest.mark.parametrize(
    "options",
    [
        {"strength": 1e-5},  # the caller determines the program
        {"fit_loss": "same"},
        {"allow_tied": True},  # perhaps another layer's
    ],
    ids=lambda options: next(iter(options)),
)
def test_other_large_readouts_are_written_as_they_were_solved(options):
    net = loop_net(hidden=200)
    report = convex_init_(net, batches(), hidden="keep", **options)
    assert report.factor == 1.0
    assert size(net) > LARGEST
    assert torch.equal(net.fc2.weight, report.solved["fc2.weight"])
    assert (report.loss_after, report.accuracy_after) == (report.solved_loss, report.solved_accuracy)


def test_values_keep_their_size():
    data = [(inputs, 100 * one_hot(labels)) for inputs, labels in batches()]
    net = loop_net(hidden=200)
    assert convex_init_(net, data, hidden="keep", loss=nn.MSELoss()).factor == 1.0
    assert size(net) > LARGEST


def test_a_readout_that_is_not_trained_on_keeps_its_size():
    net = loop_net(hidden=200)
    report = initialize_network(net, batches(), Options(hidden="keep"), Context(trains_on=False))
    assert report.fit_loss == "squared_hinge"
    assert report.factor == 1.0
    assert size(net) > LARGEST
    assert accuracy(net) > 0.9
