"""Nets and test loops as snnTorch's tutorials write them, on scikit-learn's digits."""

import snntorch as snn
import snntorch.functional as SF
import torch
from torch import nn

from ..helpers import CLASSES, HIDDEN, PIXELS

STEPS = 12


def loud(net):
    """Make the hidden layer fire as often as a trained one does, also within one step."""
    with torch.no_grad():
        next(module for module in net.modules() if isinstance(module, nn.Linear)).weight.mul_(5)
    return net


class Tutorial(nn.Module):
    """Tutorials 5 and 6: membranes passed by hand, spikes and membranes of all steps returned."""

    def __init__(self, num_steps=STEPS, outputs=CLASSES, bias=True, reset="subtract"):
        super().__init__()
        self.fc1, self.lif1 = nn.Linear(PIXELS, HIDDEN), snn.Leaky(beta=0.95)
        self.fc2, self.lif2 = nn.Linear(HIDDEN, outputs, bias=bias), snn.Leaky(beta=0.95, reset_mechanism=reset)
        self.num_steps = num_steps

    def forward(self, x):
        mem1, mem2, spk_rec, mem_rec = self.lif1.init_leaky(), self.lif2.init_leaky(), [], []
        for _ in range(self.num_steps):
            spk1, mem1 = self.lif1(self.fc1(x), mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            spk_rec.append(spk2)
            mem_rec.append(mem2)
        return torch.stack(spk_rec), torch.stack(mem_rec)


def sequential():
    """Tutorial 7: states kept in the neurons, stepped from outside."""
    return nn.Sequential(
        nn.Linear(PIXELS, HIDDEN),
        snn.Leaky(beta=0.9, init_hidden=True),
        nn.Linear(HIDDEN, CLASSES),
        snn.Leaky(beta=0.9, init_hidden=True, output=True),
    )


def forward_pass(net, data, num_steps=STEPS):
    """Tutorial 7's own loop."""
    for module in net.modules():
        if isinstance(module, snn.Leaky):
            module.reset_mem()
    record = [net(data)[0] for _ in range(num_steps)]
    return torch.stack(record)


class States(nn.Module):
    """StateLeaky takes all steps at once, never resets and returns spikes and membranes."""

    def __init__(self):
        super().__init__()
        self.fc1, self.l1 = nn.Linear(PIXELS, HIDDEN), snn.StateLeaky(beta=0.9, channels=HIDDEN)
        self.fc2, self.l2 = nn.Linear(HIDDEN, CLASSES), snn.StateLeaky(beta=0.9, channels=CLASSES)

    def forward(self, x):
        return self.l2(self.fc2(self.l1(self.fc1(x))[0]))


def spikes_of(net, data):
    return net(data)[0]


def states_of(net, data):
    return net(data.expand(STEPS, *data.shape))[0]


def own_test(net, spikes, data, rows=slice(None), **population):
    """The accuracy as the tutorials measure it."""
    inputs, labels = data
    with torch.no_grad():
        return SF.accuracy_rate(spikes(net, inputs[rows]), labels[rows], **population)
