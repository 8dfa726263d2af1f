"""A net whose output is any function of spikes and membranes over time, for the tests of tasks and of calibration."""

import functools

import snntorch as snn
import torch
from torch import nn

from snn_recon_plugin import convex_init_

from ..helpers import CLASSES, HIDDEN, PIXELS, batches, test_data

OPTIONS = {"hidden": "keep", "strength": 1e-4}
STEPS = 20  # a spike count over fewer steps is too coarse to follow a score closely


class Net(nn.Module):
    """A loop whose output ``returns`` makes of spikes and membranes over time."""

    def __init__(self, returns, reset="none", outputs=CLASSES, bias=True, beta=0.9):
        super().__init__()
        self.fc1, self.lif1 = nn.Linear(PIXELS, HIDDEN), snn.Leaky(beta=0.9)
        self.fc2, self.lif2 = nn.Linear(HIDDEN, outputs, bias=bias), snn.Leaky(beta=beta, reset_mechanism=reset)
        self.returns = returns

    def forward(self, x):
        mem1, mem2, spikes, membranes = self.lif1.reset_mem(), self.lif2.reset_mem(), [], []
        for _ in range(STEPS):
            spk, mem1 = self.lif1(self.fc1(x), mem1)
            spk, mem2 = self.lif2(self.fc2(spk), mem2)
            spikes.append(spk)
            membranes.append(mem2)
        return self.returns(torch.stack(spikes), torch.stack(membranes))


def both(spk, mem):
    return spk, mem


def membranes(spk, mem):
    return mem


def build(returns=both, **options):
    torch.manual_seed(0)
    return Net(returns, **options)


def accuracy(net, decode):
    inputs, labels = test_data()
    with torch.no_grad():
        return float((decode(net(inputs)).argmax(1) == labels).double().mean())


def one_hot(labels):
    return nn.functional.one_hot(labels, CLASSES).float()


@functools.cache
def linear_accuracy(readout="membrane_mean"):
    """Return the test accuracy of the same net without a reset, which a readout that follows the linear score nearly has."""
    net = build(membranes)
    convex_init_(net, batches(), readout=readout, **OPTIONS)
    return accuracy(net, lambda mem: mem[-1] if readout == "membrane_last" else mem.mean(0))
