"""Hidden layers in an initialisation: how many samples choose their rows, and what is written where layers share a weight."""

from types import SimpleNamespace

import pytest
import snntorch as snn
import torch
from torch import nn

from snn_recon_plugin import convex_init_, over_time
from snn_recon_plugin.networks.structure.layers import HiddenLayer
from snn_recon_plugin.options import Options
from snn_recon_plugin.stages.build import count_wanted
from snn_recon_plugin.stages.scores import RowsPerSample

from ..helpers import STEPS, batches


@pytest.mark.parametrize(
    ("steps", "width", "options", "expected"),
    [
        (8, 64, {"hidden": "keep"}, 0),
        (8, 64, {"hidden": "rescale"}, 3000),
        (8, 64, {"hidden": "rescale", "max_samples": 200}, 200),
        (8, 64, {}, 3000),
        (8, 64, {"max_samples": 200}, 200),
        (1000, 64, {}, 2**20 // 1000),  # a million steps of samples
        (100, 2000, {}, 2**30 // (4 * 100 * 2000)),  # a gigabyte of inputs
        (10**5, 64, {}, 500),  # no fewer than the least
        (8, None, {}, 64),  # a convolution
        (8, None, {"max_samples": 50}, 50),
    ],
)
def test_samples_that_hidden_layers_are_chosen_on(steps, width, options, expected):
    synapse = nn.Linear(width, 4) if width else nn.Conv2d(1, 4, 3)
    net_map = SimpleNamespace(hidden=[HiddenLayer("fc", synapse, "lif", snn.Leaky(beta=0.9))], num_steps=steps)
    task = SimpleNamespace(net_map=net_map, rows=RowsPerSample(), readout=SimpleNamespace(filter=torch.ones(steps), bias_gain=1.0))
    assert count_wanted(task, Options(**options)) == expected


def tied():
    torch.manual_seed(0)
    first, second = nn.Linear(64, 64), nn.Linear(64, 64)
    second.weight = first.weight
    neurons = [snn.Leaky(beta=0.9, init_hidden=True) for _ in range(2)]
    output = snn.Leaky(beta=0.9, reset_mechanism="none", init_hidden=True, output=True)
    return nn.Sequential(first, neurons[0], second, neurons[1], nn.Linear(64, 10), output)


@pytest.mark.usefixtures("two_rates")
def test_layers_that_share_a_weight_are_written_as_they_were_verified():
    options = {"allow_tied": True, "strength": 1e-2, "progress": False, "forward": over_time(STEPS)}
    kept = convex_init_(tied(), batches(100), hidden="keep", **options)
    net = tied()
    report = convex_init_(net, batches(100), hidden="rescale", **options)
    assert report.accuracy_before == kept.accuracy_before
    assert any(layer.gain != 1 for layer in report.layers)
    assert net[2].weight is net[0].weight
    report.undo()
    assert torch.equal(net[0].weight, tied()[0].weight)
