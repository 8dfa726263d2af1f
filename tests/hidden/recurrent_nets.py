"""Nets with a recurrent layer, and what samplers see of it."""

import norse.torch as norse
import snntorch as snn
import torch
from torch import nn

from snn_recon_plugin.hidden import HiddenTask
from snn_recon_plugin.hidden.hidden_task import TemporaryReadout
from snn_recon_plugin.hidden.recurrent import find_recurrent_layer, make_recurrent_site
from snn_recon_plugin.networks import HiddenLayer, StoredBatch, plain_forward

from ..helpers import HIDDEN, test_data

STEPS = 8


class Rows(nn.Module):
    """Reads an 8x8 image row by row: what a neuron remembers matters."""

    def __init__(self, **options):
        super().__init__()
        torch.manual_seed(0)
        self.fc1, self.lif1 = nn.Linear(8, HIDDEN), snn.RLeaky(beta=0.8, linear_features=HIDDEN, **options)
        self.fc2, self.lif2 = nn.Linear(HIDDEN, 10), snn.Leaky(beta=0.9, reset_mechanism="none")

    def forward(self, x):
        (spikes, mem1), mem2, membranes = self.lif1.init_rleaky(), self.lif2.reset_mem(), []
        for row in x.reshape(-1, STEPS, 8).movedim(1, 0):
            spikes, mem1 = self.lif1(self.fc1(row), spikes, mem1)
            _, mem2 = self.lif2(self.fc2(spikes), mem2)
            membranes.append(mem2)
        return torch.stack(membranes)


class NorseRows(nn.Module):
    """The same in Norse, whose recurrent layer holds its input weights itself; time first, or second."""

    def __init__(self, autapses=False):
        super().__init__()
        torch.manual_seed(0)
        self.layers = norse.SequentialState(norse.LIFRecurrent(8, HIDDEN, autapses=autapses), nn.Linear(HIDDEN, 10), norse.LI())

    def forward(self, x):
        return self.layers(x.reshape(-1, STEPS, 8).movedim(1, 0))[0]


def layer_of(net):
    if isinstance(net, Rows):
        return HiddenLayer("fc1", net.fc1, "lif1", net.lif1)
    return HiddenLayer("layers.0", net.layers[0], "layers.0", net.layers[0])


def see(net, count=100, size=50, temporary=None, labels=None):
    """Return the task of a net and what samplers see of its layer; the last batch holds more samples than count."""
    inputs, own = test_data()
    labels = own if labels is None else labels
    parts = [StoredBatch(inputs[i : i + size], slice(i, min(i + size, count))) for i in range(0, count, size)]
    temporary = temporary or TemporaryReadout(torch.ones(1, STEPS), torch.ones(1))
    task = HiddenTask(net, parts, labels[:count], None, None, plain_forward, temporary, None, samples=torch.arange(0, count, 2))
    return task, make_recurrent_site(task, find_recurrent_layer(layer_of(net)))
