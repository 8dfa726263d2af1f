"""Small nets that tests of several folders share."""

from collections.abc import Callable

import snntorch as snn
import torch
from torch import nn


class Shallow(nn.Module):
    """A hidden layer and a readout in a time loop; ``returns`` makes the output of spikes and membranes over time."""

    def __init__(self, returns: Callable, hidden=48, outputs=10, bias=True, steps=20, **output):
        super().__init__()
        self.fc1, self.lif1 = nn.Linear(64, hidden), snn.Leaky(beta=0.9)
        self.fc2, self.lif2 = nn.Linear(hidden, outputs, bias=bias), snn.Leaky(**{"beta": 0.9, "reset_mechanism": "none", **output})
        self.returns, self.steps = returns, steps

    def forward(self, x):
        mem1, mem2, spikes, membranes = self.lif1.reset_mem(), self.lif2.reset_mem(), [], []
        for _ in range(self.steps):
            spk, mem1 = self.lif1(self.fc1(x), mem1)
            spk, mem2 = self.lif2(self.fc2(spk), mem2)
            spikes.append(spk)
            membranes.append(mem2)
        return self.returns(torch.stack(spikes), torch.stack(membranes))


def both(spk, mem):
    return spk, mem


def membranes(spk, mem):
    return mem


def shallow(returns=both, **options):
    """The net of seed 0."""
    torch.manual_seed(0)
    return Shallow(returns, **options)


def stepped(inputs, hidden, outputs, **output):
    """A net of one hidden layer that is stepped from outside, of seed 0; states are kept in the neurons."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(inputs, hidden),
        snn.Leaky(beta=0.9, init_hidden=True),
        nn.Linear(hidden, outputs),
        snn.Leaky(**{"beta": 0.9, "reset_mechanism": "none", **output}, init_hidden=True, output=True),
    )
