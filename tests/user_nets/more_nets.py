"""Nets in further forms of scripts: what they put before and behind the readout, and what they read and return."""

from __future__ import annotations

from collections import namedtuple
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import norse.torch as norse
import snntorch as snn
import torch
from snntorch import spikegen
from torch import nn

from ..nets import step_through
from .data import CLASSES, HIDDEN, STEPS, mean
from .norse_nets import LIF_CELL, PARAMETERS, step_cells
from .snntorch_nets import AllSteps, Loop, both, leaky, run_in, state_leaky

NONE = partial(leaky, reset_mechanism="none")
Output = namedtuple("Output", ["logits", "rate"])


@dataclass
class Found:
    logits: torch.Tensor


class Apply(nn.Module):
    def __init__(self, change):
        super().__init__()
        self.change = change

    def forward(self, x):
        return self.change(x)


class Gain(nn.Module):
    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.linspace(0.5, 2.0, CLASSES))

    def forward(self, x):
        return self.gain * x


def behind(change, bias=True, **options):
    """A Loop whose output neuron gets what a module makes of the readout's output."""
    net = Loop(**options)
    net.fc2 = nn.Sequential(nn.Linear(HIDDEN, CLASSES, bias=bias), change)
    return net


def trained_norm(features=CLASSES):
    norm = nn.BatchNorm1d(features)
    run_in(norm)
    return norm


class ScoreNorm(Loop):
    def __init__(self):
        super().__init__(output=NONE)
        self.norm = trained_norm()

    def forward(self, x):
        return self.norm(super().forward(x)[1].mean(0))


class EveryStepNorm(Loop):
    """Batch norm with parameters of its own at each step, behind the readout."""

    def __init__(self, trained=False):
        super().__init__()
        self.norms = snn.BatchNormTT1d(CLASSES, STEPS)
        if trained:
            for norm in self.norms:
                run_in(norm)

    def forward(self, x):
        norms = iter(self.norms)
        synapses = self.fc1, lambda spikes: next(norms)(self.fc2(spikes))
        return step_through([x] * STEPS, synapses, (self.lif1, self.lif2))


class NoOutputNeuron(nn.Module):
    """Hidden spikes, or membranes, into a last Linear: at each step, or once after they were decoded."""

    def __init__(self, take="spikes", first=lambda values: values, decode=mean, last=None, outputs=CLASSES):
        super().__init__()
        self.fc1, self.lif1, self.fc2 = nn.Linear(64, HIDDEN), leaky(), nn.Linear(HIDDEN, outputs)
        self.take, self.first, self.decode, self.last = take, first, decode, last or nn.Identity()

    def forward(self, x):
        values = step_through([x] * STEPS, (self.fc1,), (self.lif1,))[0 if self.take == "spikes" else 1]
        values = self.first(values)
        if values.dim() == 2:
            return self.fc2(values)
        return self.decode(torch.stack([self.last(self.fc2(each)) for each in values]))


class Wide(nn.Module):
    """The readout sees the spikes of both hidden layers, and the input."""

    def __init__(self):
        super().__init__()
        self.fc1, self.lif1 = nn.Linear(64, 40), leaky()
        self.fc2, self.lif2 = nn.Linear(40, 40), leaky()
        self.out, self.lif3, self.drop = nn.Linear(144, CLASSES), leaky(), nn.Dropout(0.3)

    def forward(self, x):
        mem1, mem2, mem3 = (neuron.reset_mem() for neuron in (self.lif1, self.lif2, self.lif3))
        spikes = []
        for _ in range(STEPS):
            spk1, mem1 = self.lif1(self.fc1(x), mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            spk3, mem3 = self.lif3(self.out(self.drop(torch.cat([spk1, spk2, x], 1))), mem3)
            spikes.append(spk3)
        return torch.stack(spikes, dim=1)  # batch first


class Tokens(nn.Module):
    """A hidden Linear that runs over the eight rows of an image, whose spikes are averaged over rows before the head."""

    def __init__(self):
        super().__init__()
        self.fc1, self.lif1, self.head = nn.Linear(8, HIDDEN), leaky(), nn.Linear(HIDDEN, CLASSES)

    def forward(self, x):
        return self.head(step_through([x] * STEPS, [self.fc1], [self.lif1])[0].mean(0).mean(1))


class Front(Loop):
    """Layers without spikes in front of the hidden neurons."""

    def __init__(self, front, inputs, **options):
        super().__init__(inputs, **options)
        self.front = front

    def forward(self, x):
        return super().forward(self.front(x))


class LastState(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(8, 32, batch_first=True)

    def forward(self, x):
        return self.lstm(x)[0][:, -1]


class Heads(Loop):
    """Digits and whether they are large, by a head each."""

    def __init__(self):
        super().__init__()
        self.large, self.lif3 = nn.Linear(HIDDEN, 2), leaky()

    def forward(self, x):
        spikes, _ = step_through([x] * STEPS, [self.fc1], [self.lif1])
        heads = (self.fc2, self.lif2), (self.large, self.lif3)
        return tuple(step_through(spikes, [synapse], [neuron])[0] for synapse, neuron in heads)


class OneStep(nn.Module):
    """One step whose neurons keep their membranes, without ``init_hidden``: the script resets them, then loops."""

    def __init__(self):
        super().__init__()
        self.fc1, self.lif1 = nn.Linear(64, HIDDEN), leaky()
        self.fc2, self.lif2 = nn.Linear(HIDDEN, CLASSES), leaky()

    def forward(self, x):
        spikes, _ = self.lif1(self.fc1(x))
        return self.lif2(self.fc2(spikes))


def loop_of_one_step(net, x):
    net.lif1.reset_mem()
    net.lif2.reset_mem()
    return torch.stack([net(x)[0] for _ in range(STEPS)])


class TimeFirst(nn.Module):
    """Takes and returns ``[T, B, *]``: tutorials on sequences, and on regression."""

    def __init__(self, inputs=8, outputs=CLASSES, output=NONE):
        super().__init__()
        self.fc1, self.lif1 = nn.Linear(inputs, HIDDEN), leaky()
        self.fc2, self.lif2 = nn.Linear(HIDDEN, outputs), output()

    def forward(self, x):
        return step_through(x, (self.fc1, self.fc2), (self.lif1, self.lif2))[1]


class Ragged(TimeFirst):
    """Reads each sequence at a step of its own."""

    def forward(self, x):
        last = 3 + torch.arange(x.shape[1]) % 5
        return super().forward(x)[last, torch.arange(x.shape[1])]


class SecondInput(Loop):
    def __init__(self, share=1.0):
        super().__init__()
        self.share = share

    def forward(self, x):
        synapses = (self.fc1, lambda spikes: self.fc2(spikes) + self.share * x[:, 20:30])
        return step_through([x] * STEPS, synapses, (self.lif1, self.lif2))


class Clamped(Loop):
    """The membrane of the output is clamped between steps, as on hardware."""

    def __init__(self, clamp=True):
        super().__init__()
        self.clamp = clamp

    def forward(self, x):
        mem1, mem2, record = self.lif1.reset_mem(), self.lif2.reset_mem(), []
        for _ in range(STEPS):
            spikes, mem1 = self.lif1(self.fc1(x), mem1)
            spikes, mem2 = self.lif2(self.fc2(spikes), mem2)
            mem2 = mem2.clamp(-1, 1) if self.clamp else mem2
            record.append((spikes, mem2))
        return tuple(map(torch.stack, zip(*record, strict=True)))


def rate_encoder():
    """Tutorial 1's encoder within forward: other spikes at each call."""
    return Encoded(lambda x: spikegen.rate(x, STEPS))


def latency_encoder():
    """Bright pixels spike first."""
    return Encoded(lambda x: spikegen.latency(x, STEPS, threshold=0.01, normalize=True, linear=True))


class Encoded(Loop):
    def __init__(self, encode):
        super().__init__(at=lambda x, step: x[step])
        self.encode = encode

    def forward(self, x):
        return super().forward(self.encode(x))


def dense(sizes):
    """Blocks of a Linear and a neuron that keeps its membrane, nested in a Sequential."""
    *hidden, (last, outputs) = pairwise(sizes)
    blocks = [nn.Sequential(nn.Linear(*pair), leaky(init_hidden=True)) for pair in hidden]
    return nn.Sequential(nn.Flatten(), *blocks, nn.Linear(last, outputs), leaky(init_hidden=True, output=True))


def convolutional(*middle, features=12 * 64):
    """A convolution of twelve channels, what follows it, and a readout of so many features."""
    conv, output = nn.Conv2d(1, 12, 3, padding=1, bias=False), snn.Leaky(beta=0.9, init_hidden=True, output=True)
    return nn.Sequential(conv, *middle, nn.Flatten(), nn.Linear(features, CLASSES), output)


def trained_norm2d():
    norm = nn.BatchNorm2d(12)
    run_in(norm)
    return norm


def row_blocks():
    """One step of a net that reads a row of the image a step."""
    neuron = partial(leaky, init_hidden=True)
    return nn.Sequential(nn.Linear(8, HIDDEN), neuron(), nn.Linear(HIDDEN, CLASSES), neuron(output=True))


def states():
    """Tutorial 8: layers that take all steps, ``[T, B, 64]``."""
    first, second = nn.Sequential(*state_leaky(64, HIDDEN)), nn.Sequential(*state_leaky(HIDDEN, CLASSES))
    return AllSteps(layer1=first, layer2=second)


def parallel():
    return AllSteps(layer1=snn.LeakyParallel(8, HIDDEN, beta=0.9), out=nn.Linear(HIDDEN, CLASSES))


class TwoInputs(Loop):
    def forward(self, upper, lower):
        return super().forward(torch.cat([upper, lower], 1))


class Block(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv1, self.lif1 = nn.Conv2d(channels, channels, 3, padding=1), snn.Leaky(beta=0.5, init_hidden=True)
        self.conv2, self.lif2 = nn.Conv2d(channels, channels, 3, padding=1), snn.Leaky(beta=0.5, init_hidden=True)

    def forward(self, x):
        return self.lif2(self.conv2(self.lif1(self.conv1(x))) + x)


stateful = partial(snn.Leaky, beta=0.5, init_hidden=True)


# -- one output, and values ------------------------------------------------------------------------------------------------
def single(returns=both, output=leaky):
    return Loop(output=output, sizes=(HIDDEN, 1), returns=returns)


def softmax(values):
    return values.mean(0).softmax(1)


def softmax_at_steps(values):
    return values.softmax(2)


def noisy(values):
    """Values with noise of torch's global generator: scores of the mean, if they are over time."""
    scores = values.mean(0) if values.dim() == 3 else values
    return scores + 0.1 * torch.randn_like(scores)


def with_sigmoid():
    return single(lambda spikes, membranes: membranes.mean(0).sigmoid(), NONE)


def normalised_single():
    net = single()
    net.fc2 = nn.Sequential(net.fc2, trained_norm(1))
    return net


def regressor(outputs=1, returns=lambda spikes, membranes: membranes.mean(0)):
    return Loop(output=NONE, sizes=(HIDDEN, outputs), returns=returns)


def weigh_later(membranes):
    """Score in which later steps weigh more."""
    return torch.einsum("t,tbc->bc", torch.linspace(0.1, 1, len(membranes)), membranes)


# -- Norse -----------------------------------------------------------------------------------------------------------------
class NormalisedCells(nn.Module):
    """A published EEG net's end: a batch norm, and a factor, between the readout and its integrator."""

    def __init__(self, change=None, hidden=LIF_CELL, output=norse.LICell, encoder=lambda x: [x] * 2 * STEPS):
        super().__init__()
        self.fc1, self.lif1 = nn.Linear(64, HIDDEN), hidden()
        self.fc2, self.norm, self.out = nn.Linear(HIDDEN, CLASSES), change or trained_norm(), output()
        self.encoder = encoder

    def forward(self, x):
        synapses = (self.fc1, lambda z: 2 * self.norm(self.fc2(z)))
        return step_cells(self.encoder(x), synapses, (self.lif1, self.out))


def lifted(*hidden, output=None):
    return norse.SequentialState(*hidden, nn.Linear(HIDDEN, CLASSES), output or norse.LI())


def lif_layer():
    return norse.LIF(p=PARAMETERS)


def hidden_linear():
    return nn.Linear(64, HIDDEN)


def square_linear():
    return nn.Linear(HIDDEN, HIDDEN)


def lifted_norm():
    return norse.Lift(trained_norm(HIDDEN))


def poisson():
    """Norse's encoder: other spikes at each call."""
    return NormalisedCells(encoder=norse.PoissonEncoder(2 * STEPS, f_max=500))


class Voltage(nn.Module):
    """The last voltage of an integrator, one value a sample."""

    def __init__(self):
        super().__init__()
        self.fc1, self.lif1, self.fc2, self.out = nn.Linear(64, HIDDEN), LIF_CELL(), nn.Linear(HIDDEN, 1), norse.LICell()

    def forward(self, x):
        return step_cells([x] * 2 * STEPS, (self.fc1, self.fc2), (self.lif1, self.out))[-1]


def beta_per_neuron():
    return snn.Leaky(beta=torch.linspace(0.4, 0.95, HIDDEN), threshold=torch.linspace(0.5, 1.5, HIDDEN), learn_threshold=True)


graded = partial(leaky, graded_spikes_factor=1.5)
