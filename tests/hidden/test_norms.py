"""Batch norms: the identity behind rebuilt rows, statistics from the data elsewhere, and nothing where they are trained."""

import copy

import pytest
import snntorch as snn
import torch
from torch import nn

from snn_recon_plugin import convex_init_

from ..helpers import batches, test_data, train_data, values

STEPS, WIDTH = 6, 40


class Normed(nn.Module):
    """Two hidden layers with norms, the second one with a shortcut from the input or without, and a readout."""

    def __init__(self, shortcut=False):
        super().__init__()
        torch.manual_seed(0)
        self.fc1, self.norm1, self.lif1 = nn.Linear(64, WIDTH, bias=False), nn.BatchNorm1d(WIDTH), snn.Leaky(beta=0.7)
        self.fc2, self.norm2, self.lif2 = nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH), snn.Leaky(beta=0.7)
        self.short, self.norm3 = nn.Linear(64, WIDTH, bias=False), nn.BatchNorm1d(WIDTH)
        self.shortcut, self.fc = shortcut, nn.Linear(WIDTH, 10)

    def forward(self, x):
        one, two, total = self.lif1.reset_mem(), self.lif2.reset_mem(), 0
        for _ in range(STEPS):
            spikes, one = self.lif1(self.norm1(self.fc1(x)), one)
            current = self.norm2(self.fc2(spikes))
            spikes, two = self.lif2(current + self.norm3(self.short(x)) if self.shortcut else current, two)
            total = total + self.fc(spikes)
        return total / STEPS


@torch.no_grad()
def accuracy(net):
    inputs, labels = test_data()
    return float((net(inputs).argmax(1) == labels).float().mean())


def line(net, **options):
    return convex_init_(net, batches(400), progress=False, **{"hidden": "reconstruct", **options})


def test_rebuilt_rows_get_a_norm_that_changes_nothing_in_evaluation_and_little_in_training():
    net = Normed()
    before = values(net)
    report = line(net)
    assert all(layer.witnesses is not None for layer in report.layers)
    assert report.exactness.label == "exact"
    for norm in (net.norm1, net.norm2):
        x = torch.randn(3, WIDTH)
        assert torch.allclose(norm.eval()(x) - x, (norm.bias - norm.running_mean).expand_as(x), atol=1e-4)
        assert not torch.allclose(norm.running_mean, torch.zeros(WIDTH))
    assert torch.equal(net.fc2.bias, torch.zeros(WIDTH))
    tested = accuracy(net)
    assert tested > 0.8
    with torch.no_grad():
        outputs = net.fc1(train_data(400)[0])
        evaluated, trained = net.norm1(outputs), copy.deepcopy(net.norm1).train()(outputs)
    assert float((trained - evaluated).std() / evaluated.std()) < 0.05
    report.undo()
    assert values(net) == before


def test_a_shortcut_keeps_the_weights_and_its_norm_gets_statistics():
    net = Normed(shortcut=True)
    report = line(net)
    first, second = report.layers
    assert first.witnesses is not None
    assert second.witnesses is None
    assert "shortcut" in second.reason
    for norm in (net.norm2, net.norm3):
        assert not torch.equal(norm.running_var, torch.ones(WIDTH))
    assert accuracy(net) > 0.6


@pytest.mark.parametrize("fixed", ["trained", "frozen"])
def test_statistics_of_a_trained_or_frozen_norm_stay(fixed):
    net = Normed(shortcut=True)
    if fixed == "trained":
        net.norm3.running_mean.fill_(0.1)
    else:
        net.norm3.weight.requires_grad_(False)
    before = net.norm3.running_mean.clone(), net.norm3.running_var.clone()
    line(net, hidden="auto")
    assert torch.equal(net.norm3.running_mean, before[0])
    assert torch.equal(net.norm3.running_var, before[1])


def test_a_kept_net_keeps_its_norms():
    net = Normed()
    net.norm1.weight.data.fill_(4.0)
    net.norm2.weight.data.fill_(4.0)
    line(net, hidden="keep")
    assert torch.equal(net.norm1.running_mean, torch.zeros(WIDTH))
