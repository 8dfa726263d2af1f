"""Nets with time loops of all kinds, and what their loops may do to spikes and states."""

import norse.torch as norse
import snntorch as snn
import torch
from spikingjelly.activation_based import functional as jelly
from spikingjelly.activation_based import layer, neuron
from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from snn_recon_plugin import over_time

from ..nets import Looped, Recurrent

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


def frames(axis):
    """A recurrent layer, and an input at each step."""
    hidden = snn.RLeaky(beta=0.9, linear_features=20)
    over = lambda x: (x.select(axis, step) for step in range(x.shape[axis]))  # noqa: E731
    return Recurrent(nn.Linear(12, 20), hidden, 20, 3, beta=0.95, over=over)


class Conv(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.lif1 = nn.Conv2d(1, 4, 3), snn.Leaky(beta=0.5)
        self.conv2, self.lif2 = nn.Conv2d(4, 5, 3, padding=1), snn.Leaky(beta=0.5)
        self.fc, self.lif3 = nn.Linear(5 * 9, 3), snn.Leaky(beta=0.9)

    def forward(self, x):
        states, out = [each.reset_mem() for each in (self.lif1, self.lif2, self.lif3)], []
        for _ in range(STEPS):
            spikes, states[0] = self.lif1(functional.max_pool2d(self.conv1(x), 2), states[0])
            spikes, states[1] = self.lif2(functional.avg_pool2d(self.conv2(functional.relu(spikes)), 1), states[1])
            spikes, states[2] = self.lif3(self.fc(spikes.flatten(1)), states[2])
            out.append(states[2])
        return torch.stack(out)


def stepped(net, x):
    state, out = None, []
    for _ in range(STEPS):
        membrane, state = net(x, state)
        out.append(membrane)
    return torch.stack(out)


def cells(recurrent=False):
    """Norse's cells, stepped in forward."""
    first = [norse.LIFRecurrentCell(12, 20)] if recurrent else [nn.Linear(12, 20), norse.LIFCell()]
    return Looped(stepped, *first, nn.Linear(20, 3), norse.LICell())


def layers(recurrent=False):
    """Norse's layers, which take all steps in one call."""
    first = [norse.LIFRecurrent(12, 20)] if recurrent else [nn.Linear(12, 20), norse.LIF(record_states=True)]
    return Looped(lambda net, x: net(x.expand(STEPS, *x.shape))[0], *first, nn.Linear(20, 3), norse.LI())


def sequential(*extra):
    hidden, out = snn.Leaky(beta=0.8, init_hidden=True), snn.Leaky(beta=0.9, init_hidden=True, output=True)
    return nn.Sequential(nn.Conv2d(1, 4, 3), *extra, nn.MaxPool2d(2), hidden, nn.Flatten(), nn.Linear(36, 3), out)


class Jelly(nn.Module):
    """SpikingJelly's nodes in step mode "s", reset in forward."""

    def __init__(self):
        super().__init__()
        self.fc1, self.lif1, self.fc2 = nn.Linear(12, 20), neuron.LIFNode(), nn.Linear(20, 16)
        self.if2, self.fc3, self.plif = neuron.IFNode(v_reset=None), nn.Linear(16, 3), neuron.ParametricLIFNode(detach_reset=True)

    def forward(self, x):
        jelly.reset_net(self)
        return torch.stack([self.plif(self.fc3(self.if2(self.fc2(self.lif1(self.fc1(x * 4)))))) for _ in range(STEPS)])


class JellySequences(nn.Module):
    """SpikingJelly's nodes in step mode "m", which get the same input at all steps; reset in forward."""

    def __init__(self):
        super().__init__()
        nodes = neuron.LIFNode(v_reset=None), neuron.ParametricLIFNode()
        self.net = nn.Sequential(layer.Linear(12, 20), nodes[0], layer.Linear(20, 3), nodes[1])
        jelly.set_step_mode(self.net, "m")

    def forward(self, x):
        jelly.reset_net(self)
        return self.net((x * 4).unsqueeze(0).repeat(STEPS, 1, 1))


class Products(TorchFunctionMode):
    """Counts the products with a weight."""

    count = 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        self.count += function is functional.linear
        return function(*args, **(kwargs or {}))


def images(batch=BATCH):
    return torch.rand(batch, 1, 8, 8) * 2


def vectors(batch=BATCH):
    return torch.rand(batch, 12) * 2


# A net, its inputs, and the forward that runs all steps.
NETS = {
    "dense": (Dense, vectors, None),
    "frames, time first": (lambda: frames(0), lambda: torch.rand(STEPS, BATCH, 12) * 2, None),
    "frames, batch first": (lambda: frames(1), lambda: torch.rand(BATCH, STEPS, 12) * 2, None),
    "convolutions": (Conv, images, None),
    "a loop outside": (sequential, images, over_time(STEPS)),
    "batch norm": (lambda: sequential(nn.BatchNorm2d(4)), images, over_time(STEPS)),
    "dropout": (lambda: sequential(nn.Dropout(0.3)), images, over_time(STEPS)),
    "Norse cells": (cells, vectors, None),
    "Norse recurrent cells": (lambda: cells(recurrent=True), vectors, None),
    "Norse layers": (layers, vectors, None),
    "Norse recurrent layers": (lambda: layers(recurrent=True), vectors, None),
    "SpikingJelly": (Jelly, vectors, None),
    "SpikingJelly sequences": (JellySequences, vectors, None),
    "other spikes": (lambda: Dense(lambda spikes, state: (spikes * 0.5, state)), vectors, None),
    "other states": (lambda: Dense(lambda spikes, state: (spikes, state * 0.5)), vectors, None),
    "truncated": (lambda: Dense(lambda spikes, state: (spikes, state.detach())), vectors, None),
    "truncated in place": (lambda: Dense(lambda spikes, state: (spikes, state.detach_())), vectors, None),
    "spikes without gradient": (lambda: Dense(lambda spikes, state: (spikes.detach(), state)), vectors, None),
    "spikes changed in place": (lambda: Dense(lambda spikes, state: (spikes.mul_(0.5), state)), vectors, None),
}
