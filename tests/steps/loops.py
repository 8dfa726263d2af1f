"""Nets with time loops of all kinds, and what their loops may do to spikes and states."""

import norse.torch as norse
import snntorch as snn
import torch
from norse.torch import SequentialState
from torch import nn
from torch.nn import functional

from snn_recon_plugin import over_time

STEPS, BATCH = 6, 8


class Dense(nn.Module):
    """A loop in forward over one input; ``between`` changes the hidden spikes and the state at each step."""

    def __init__(self, between=lambda spikes, state: (spikes, state)):
        super().__init__()
        self.fc1, self.lif1 = nn.Linear(12, 20), snn.Leaky(beta=0.9)
        self.fc2, self.lif2 = nn.Linear(20, 3), snn.Leaky(beta=0.95, reset_mechanism="none")
        self.steps, self.between = STEPS, between

    def forward(self, x):
        state1, state2, membranes = self.lif1.init_leaky(), self.lif2.init_leaky(), []
        for _ in range(self.steps):
            spikes, state1 = self.lif1(self.fc1(x), state1)
            spikes, state1 = self.between(spikes, state1)
            _, state2 = self.lif2(self.fc2(spikes), state2)
            membranes.append(state2)
        return torch.stack(membranes)


class Frames(nn.Module):
    """A recurrent layer, and an input at each step."""

    def __init__(self, axis):
        super().__init__()
        self.fc1, self.lif1 = nn.Linear(12, 20), snn.RLeaky(beta=0.9, linear_features=20)
        self.fc2, self.lif2 = nn.Linear(20, 3), snn.Leaky(beta=0.95, reset_mechanism="none")
        self.axis = axis

    def forward(self, x):
        (spikes, state1), state2, membranes = self.lif1.reset_mem(), self.lif2.reset_mem(), []
        for step in range(x.shape[self.axis]):
            spikes, state1 = self.lif1(self.fc1(x.select(self.axis, step)), spikes, state1)
            _, state2 = self.lif2(self.fc2(spikes), state2)
            membranes.append(state2)
        return torch.stack(membranes)


class Conv(nn.Module):
    """Convolutions with pooling as functions, and a view."""

    def __init__(self):
        super().__init__()
        self.conv1, self.lif1 = nn.Conv2d(1, 4, 3), snn.Leaky(beta=0.5)
        self.conv2, self.lif2 = nn.Conv2d(4, 5, 3, padding=1), snn.Leaky(beta=0.5)
        self.fc, self.lif3 = nn.Linear(5 * 9, 3), snn.Leaky(beta=0.9)

    def forward(self, x):
        states, out = [neuron.reset_mem() for neuron in (self.lif1, self.lif2, self.lif3)], []
        for _ in range(STEPS):
            spikes, states[0] = self.lif1(functional.max_pool2d(self.conv1(x), 2), states[0])
            spikes, states[1] = self.lif2(functional.avg_pool2d(self.conv2(functional.relu(spikes)), 1), states[1])
            spikes, states[2] = self.lif3(self.fc(spikes.flatten(1)), states[2])
            out.append(states[2])
        return torch.stack(out)


class Cells(nn.Module):
    """Norse's cells, stepped in forward."""

    def __init__(self, recurrent=False):
        super().__init__()
        first = [norse.LIFRecurrentCell(12, 20)] if recurrent else [nn.Linear(12, 20), norse.LIFCell()]
        self.net = SequentialState(*first, nn.Linear(20, 3), norse.LICell())

    def forward(self, x):
        state, out = None, []
        for _ in range(STEPS):
            membrane, state = self.net(x, state)
            out.append(membrane)
        return torch.stack(out)


class Layers(nn.Module):
    """Norse's layers, which take all steps in one call."""

    def __init__(self, recurrent=False):
        super().__init__()
        first = [norse.LIFRecurrent(12, 20)] if recurrent else [nn.Linear(12, 20), norse.LIF(record_states=True)]
        self.net = SequentialState(*first, nn.Linear(20, 3), norse.LI())

    def forward(self, x):
        return self.net(x.expand(STEPS, *x.shape))[0]


def sequential(*extra):
    hidden, out = snn.Leaky(beta=0.8, init_hidden=True), snn.Leaky(beta=0.9, init_hidden=True, output=True)
    return nn.Sequential(nn.Conv2d(1, 4, 3), *extra, nn.MaxPool2d(2), hidden, nn.Flatten(), nn.Linear(36, 3), out)


def images(batch=BATCH):
    return torch.rand(batch, 1, 8, 8) * 2


def vectors(batch=BATCH):
    return torch.rand(batch, 12) * 2


# A net, its inputs, and the forward that runs all steps.
NETS = {
    "dense": (Dense, vectors, None),
    "frames, time first": (lambda: Frames(0), lambda: torch.rand(STEPS, BATCH, 12) * 2, None),
    "frames, batch first": (lambda: Frames(1), lambda: torch.rand(BATCH, STEPS, 12) * 2, None),
    "convolutions": (Conv, images, None),
    "a loop outside": (sequential, images, over_time(STEPS)),
    "batch norm": (lambda: sequential(nn.BatchNorm2d(4)), images, over_time(STEPS)),
    "dropout": (lambda: sequential(nn.Dropout(0.3)), images, over_time(STEPS)),
    "Norse cells": (Cells, vectors, None),
    "Norse recurrent cells": (lambda: Cells(recurrent=True), vectors, None),
    "Norse layers": (Layers, vectors, None),
    "Norse recurrent layers": (lambda: Layers(recurrent=True), vectors, None),
    "other spikes": (lambda: Dense(lambda spikes, state: (spikes * 0.5, state)), vectors, None),
    "other states": (lambda: Dense(lambda spikes, state: (spikes, state * 0.5)), vectors, None),
    "truncated": (lambda: Dense(lambda spikes, state: (spikes, state.detach())), vectors, None),
    "truncated in place": (lambda: Dense(lambda spikes, state: (spikes, state.detach_())), vectors, None),
    "spikes without gradient": (lambda: Dense(lambda spikes, state: (spikes.detach(), state)), vectors, None),
    "spikes changed in place": (lambda: Dense(lambda spikes, state: (spikes.mul_(0.5), state)), vectors, None),
}
