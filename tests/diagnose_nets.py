"""Networks of the diagnosis's tests, and the lookup of its findings."""

import pytest
import snntorch as snn
import torch
from torch import nn

from snn_recon_plugin import over_time

from .helpers import (
    BETA,
    CLASSES,
    HIDDEN,
    PIXELS,
    Loop,
    conv_net,
    loop_net,
    sequential_net,
)

STEPS = 12
FEW = 9  # too few to solve a readout, which takes most of the time


def norse_net(seed=0):
    norse = pytest.importorskip("norse.torch")
    torch.manual_seed(seed)
    layers = nn.Linear(PIXELS, HIDDEN), norse.LIFCell(), nn.Linear(HIDDEN, HIDDEN), norse.LIFCell(), nn.Linear(HIDDEN, CLASSES)
    net = norse.SequentialState(*layers, norse.LICell())
    with torch.no_grad():
        for number in (0, 2):
            net[number].weight.mul_(6)  # at its initialisation the second layer never spikes
    return net


def norse_layers(seed=0):
    norse = pytest.importorskip("norse.torch")
    torch.manual_seed(seed)
    return norse.SequentialState(nn.Linear(PIXELS, HIDDEN), norse.LIF(), nn.Linear(HIDDEN, CLASSES), norse.LI())


class Counts(Loop):
    """Spikes of the output neuron are returned."""

    def forward(self, x):
        mem1, mem2, found = self.lif1.reset_mem(), self.lif2.reset_mem(), []
        for _ in range(self.steps):
            spikes, mem1 = self.lif1(self.fc1(x), mem1)
            counted, mem2 = self.lif2(self.fc2(spikes), mem2)
            found.append(counted)
        return torch.stack(found)


def count_net(seed=0):
    torch.manual_seed(seed)
    return Counts(output=snn.Leaky(beta=BETA))


def kinds(found):
    return [finding.kind for finding in found.findings]


def finding(found, kind):
    (one,) = [each for each in found.findings if each.kind == kind]
    assert one.text.strip()
    assert one.fix.strip()
    return one


NETS = {
    "loop": (loop_net, {}),
    "steps outside": (sequential_net, {"forward": over_time(STEPS)}),
    "convolution": (conv_net, {}),
    "spike count": (count_net, {}),
    "norse cells": (norse_net, {"forward": over_time(STEPS)}),
    "norse layers": (norse_layers, {"forward": over_time(STEPS)}),
}


class Raises(torch.autograd.Function):
    error = ValueError

    @staticmethod
    def forward(ctx, x):
        return (x > 0).float()

    @staticmethod
    def backward(ctx, gradient):
        raise Raises.error("no way back\nand more")


class Detached(Loop):
    def forward(self, x):
        return super().forward(x).detach()
