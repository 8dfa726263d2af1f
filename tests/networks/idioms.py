"""Every way in which the tutorials of both libraries put a net together, small enough for a test."""

import itertools

import norse.torch as norse
import snntorch as snn
import torch
from torch import nn
from torch.nn import functional as F

from snn_recon_plugin.networks import over_time, plain_forward

STEPS, BATCH, INPUTS, HIDDEN, CLASSES = 6, 8, 10, 16, 3


class WithInputs(nn.Module):
    """Wraps multi-step layers: shows a static input at every step."""

    def __init__(self, body, decode=lambda out: out):
        super().__init__()
        self.body, self.decode = body, decode

    def forward(self, x):
        return self.decode(self.body(x.expand(STEPS, *x.shape)))


def loud(net, gain=30.0):
    """Make the synapses strong enough for spikes, weights inside neurons included."""
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if parameter.ndim > 1 and "recurrent" not in name:
                parameter.mul_(gain)
    return net


def cells():
    return norse.SequentialState(
        nn.Linear(INPUTS, HIDDEN),
        norse.LIFCell(),
        nn.Linear(HIDDEN, HIDDEN),
        norse.LIFCell(),
        nn.Linear(HIDDEN, CLASSES),
        norse.LICell(),
    )


def multi_step():
    return norse.SequentialState(nn.Linear(INPUTS, HIDDEN), norse.LIF(), nn.Linear(HIDDEN, CLASSES), norse.LI())


def conv_lift():
    return norse.SequentialState(
        norse.Lift(nn.Conv2d(1, 4, 5)),
        norse.LIF(),
        norse.Lift(nn.MaxPool2d(2)),
        nn.Flatten(2),
        nn.Linear(4 * 7 * 7, CLASSES),
        norse.LI(),
    )


def lifted_linear():
    return norse.SequentialState(
        norse.Lift(nn.Linear(INPUTS, HIDDEN)), norse.LIF(), norse.Lift(nn.Linear(HIDDEN, CLASSES)), norse.LI()
    )


def lifted_net():
    return norse.Lift(norse.SequentialState(nn.Linear(INPUTS, HIDDEN), norse.LIFCell(), nn.Linear(HIDDEN, CLASSES), norse.LICell()))


def conv_cells():
    return norse.SequentialState(
        nn.Conv2d(1, 4, 5), norse.LIFCell(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(4 * 7 * 7, CLASSES), norse.LICell()
    )


class LinearCell(nn.Module):
    """States passed by hand, and a readout whose weight lies in the integrator."""

    def __init__(self):
        super().__init__()
        self.fc1, self.l1 = nn.Linear(INPUTS, HIDDEN), norse.LIFCell(p=norse.LIFParameters(v_th=torch.tensor(0.7)))
        self.out = norse.LILinearCell(HIDDEN, CLASSES)

    def forward(self, x):
        s1 = so = None
        voltages = []
        for _ in range(STEPS):
            z, s1 = self.l1(self.fc1(x), s1)
            v, so = self.out(z, so)
            voltages.append(v)
        return torch.stack(voltages)


def norse_recurrent():
    return norse.SequentialState(
        norse.LIFRecurrent(INPUTS, HIDDEN), norse.LSNNRecurrent(HIDDEN, HIDDEN), nn.Linear(HIDDEN, CLASSES), norse.LI()
    )


class StateLeaky(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.l1 = nn.Linear(INPUTS, HIDDEN), snn.StateLeaky(beta=0.9, channels=HIDDEN)
        self.fc2, self.l2 = nn.Linear(HIDDEN, CLASSES), snn.StateLeaky(beta=0.9, channels=CLASSES, output=False)

    def forward(self, x):
        return self.l2(self.fc2(self.l1(self.fc1(x))[0]))


class LinearLeaky(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([snn.LinearLeaky(0.9, INPUTS, HIDDEN), snn.LinearLeaky(0.8, HIDDEN, CLASSES)])

    def forward(self, x):
        z, _ = self.layers[0](x)
        return self.layers[1](z)


class Parallel(nn.Module):
    """A LeakyParallel hidden layer, and plain logits."""

    def __init__(self):
        super().__init__()
        self.l1, self.fc = snn.LeakyParallel(INPUTS, HIDDEN, beta=0.9), nn.Linear(HIDDEN, CLASSES)

    def forward(self, x):
        return self.fc(self.l1(x)).mean(0)


class Recurrent(nn.Module):
    """A hidden layer that feeds its spikes back, with a synaptic current."""

    def __init__(self):
        super().__init__()
        self.fc1, self.l1 = nn.Linear(INPUTS, HIDDEN), snn.RSynaptic(alpha=0.8, beta=0.9, linear_features=HIDDEN)
        self.fc2, self.l2 = nn.Linear(HIDDEN, CLASSES), snn.Leaky(beta=0.9, reset_mechanism="none")

    def forward(self, x):
        (spk, syn, mem), out, record = self.l1.reset_mem(), self.l2.reset_mem(), []
        for _ in range(STEPS):
            spk, syn, mem = self.l1(self.fc1(x), spk, syn, mem)
            _, out = self.l2(self.fc2(spk), out)
            record.append(out)
        return torch.stack(record)


class Stack(nn.Module):
    """A ModuleList of layers, and a list of steps as output."""

    def __init__(self, sizes=(INPUTS, HIDDEN, HIDDEN, CLASSES)):
        super().__init__()
        self.synapses = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(sizes))
        resets = ["subtract"] * (len(sizes) - 2) + ["none"]
        self.neurons = nn.ModuleList(snn.Leaky(beta=0.9, reset_mechanism=reset) for reset in resets)

    def forward(self, x):
        states, record = [neuron.reset_mem() for neuron in self.neurons], []
        for _ in range(STEPS):
            z = x
            for number, (synapse, neuron) in enumerate(zip(self.synapses, self.neurons, strict=True)):
                z, states[number] = neuron(synapse(z), states[number])
            record.append(states[-1])
        return record


class BatchMajor(nn.Module):
    """Time on the second axis throughout: the readout sees [B, T, P] once."""

    def __init__(self, fold=False):
        super().__init__()
        self.fc1, self.l1 = nn.Linear(INPUTS, HIDDEN), snn.Leaky(beta=0.9)
        self.fc2, self.l2 = nn.Linear(HIDDEN, CLASSES), snn.Leaky(beta=0.9, reset_mechanism="none")
        self.fold = fold

    def forward(self, x):
        m1, m2, spikes, record = self.l1.reset_mem(), self.l2.reset_mem(), [], []
        for _ in range(STEPS):
            z, m1 = self.l1(self.fc1(x), m1)
            spikes.append(z)
        whole = torch.stack(spikes, dim=1)
        currents = self.fc2(whole.flatten(0, 1)).unflatten(0, whole.shape[:2]) if self.fold else self.fc2(whole)
        for step in range(STEPS):
            _, m2 = self.l2(currents[:, step], m2)
            record.append(m2)
        return torch.stack(record, dim=1)


class ConvExplicit(nn.Module):
    def __init__(self):
        super().__init__()
        self.c1, self.l1 = nn.Conv2d(1, 4, 5), snn.Leaky(beta=0.9)
        self.fc, self.l2 = nn.Linear(4 * 7 * 7, CLASSES), snn.Leaky(beta=0.9, reset_mechanism="none")

    def forward(self, x):
        m1, m2, record = self.l1.reset_mem(), self.l2.reset_mem(), []
        for _ in range(STEPS):
            z, m1 = self.l1(F.max_pool2d(self.c1(x), 2), m1)
            _, m2 = self.l2(self.fc(z.view(z.size(0), -1)), m2)
            record.append(m2)
        return torch.stack(record)


class Mixed(nn.Module):
    """A readout of another precision than the hidden layer."""

    def __init__(self, dtype):
        super().__init__()
        self.fc1, self.l1 = nn.Linear(INPUTS, HIDDEN), snn.Leaky(beta=0.9)
        self.fc2, self.l2, self.dtype = nn.Linear(HIDDEN, CLASSES).to(dtype), snn.Leaky(beta=0.9, reset_mechanism="none"), dtype

    def forward(self, x):
        m1, m2, record = self.l1.reset_mem(), self.l2.reset_mem(), []
        for _ in range(STEPS):
            z, m1 = self.l1(3 * self.fc1(x), m1)
            _, m2 = self.l2(self.fc2(z.to(self.dtype)), m2)
            record.append(m2)
        return torch.stack(record)


def first(returned):
    return returned[0]


# Name: net, forward, readout, hidden layers, whether it sees images, and the expected kind and exactness.
OVER = over_time(STEPS)
CASES = {
    "cells, outer loop": (cells, OVER, "4", 2, False, "membrane_mean", "exact"),
    "multi-step layers": (multi_step, OVER, "2", 1, False, "membrane_mean", "exact"),
    "multi-step, last": (
        lambda: WithInputs(multi_step(), lambda o: o[0][-1]),
        plain_forward,
        "body.2",
        1,
        False,
        "membrane_last",
        "exact",
    ),
    "multi-step, max": (
        lambda: WithInputs(multi_step(), lambda o: o[0].amax(0)),
        plain_forward,
        "body.2",
        1,
        False,
        "membrane_max",
        "majorised",
    ),
    # Norse's MNIST example: trained by NLLLoss on what its decoder returns.
    "multi-step, max, log_softmax": (
        lambda: WithInputs(multi_step(), lambda o: o[0].amax(0).log_softmax(1)),
        plain_forward,
        "body.2",
        1,
        False,
        "membrane_max",
        "majorised",
    ),
    "multi-step, sum, log_softmax": (
        lambda: WithInputs(multi_step(), lambda o: o[0].sum(0).log_softmax(1)),
        plain_forward,
        "body.2",
        1,
        False,
        "membrane_sum",
        "exact",
    ),
    "lifted convolution": (conv_lift, OVER, "4", 1, True, "membrane_mean", "exact"),
    "lifted linear": (lifted_linear, OVER, "2.lifted_module", 1, False, "membrane_mean", "exact"),
    "lifted net": (
        lambda: WithInputs(lifted_net(), first),
        plain_forward,
        "body.lifted_module.2",
        1,
        False,
        "membrane_mean",
        "exact",
    ),
    "convolutional cells": (conv_cells, OVER, "4", 1, True, "membrane_mean", "exact"),
    "LILinearCell": (LinearCell, plain_forward, "out", 1, False, "membrane_mean", "exact"),
    "Norse recurrent": (norse_recurrent, OVER, "2", 2, False, "membrane_mean", "exact"),
    "Norse spiking cells": (
        lambda: norse.SequentialState(nn.Linear(INPUTS, HIDDEN), norse.LIFCell(), nn.Linear(HIDDEN, CLASSES), norse.LIFCell()),
        OVER,
        "2",
        1,
        False,
        "spike_count",
        "surrogate",
    ),
    "Norse spiking layers": (
        lambda: norse.SequentialState(nn.Linear(INPUTS, HIDDEN), norse.LIF(), nn.Linear(HIDDEN, CLASSES), norse.LIF()),
        OVER,
        "2",
        1,
        False,
        "spike_count",
        "surrogate",
    ),
    "StateLeaky": (StateLeaky, OVER, "fc2", 1, False, "membrane_mean", "exact"),
    "LinearLeaky": (LinearLeaky, OVER, "layers.1.linear", 1, False, "spike_count", "surrogate"),
    "LeakyParallel": (Parallel, OVER, "fc", 1, False, "linear_mean", "exact"),
    "RSynaptic": (Recurrent, plain_forward, "fc2", 1, False, "membrane_mean", "exact"),
    "module lists": (Stack, plain_forward, "synapses.2", 2, False, "membrane_mean", "exact"),
    "batch first": (BatchMajor, plain_forward, "fc2", 1, False, "membrane_mean", "exact"),
    "batch first, folded": (lambda: BatchMajor(fold=True), plain_forward, "fc2", 1, False, "membrane_mean", "exact"),
    "explicit convolution": (ConvExplicit, plain_forward, "fc", 1, True, "membrane_mean", "exact"),
}
