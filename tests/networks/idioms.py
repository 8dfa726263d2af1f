"""The benchmarks' catalogue of idioms at a small size, and layouts that only tests need."""

import itertools

import snntorch as snn
import torch
from torch import nn

from benchmarks.idioms import IDIOMS
from benchmarks.idioms_common import LI, NO_RESET, SMALL, Idiom

STEPS, BATCH, INPUTS, HIDDEN, CLASSES = SMALL.steps, 8, SMALL.inputs, SMALL.hidden, SMALL.classes


def loud(net, gain=30.0):
    """Make the synapses strong enough for spikes, weights inside neurons included."""
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if parameter.ndim > 1 and "recurrent" not in name:
                parameter.mul_(gain)
    return net


class Decoded(nn.Module):
    """A net whose forward returns the scores that a reading decodes."""

    def __init__(self, idiom, reading, after=lambda scores: scores):
        super().__init__()
        self.body, self.idiom, self.reading, self.after = idiom.build(reading.output), idiom, reading, after

    def forward(self, x):
        returned = self.idiom.forward(self.body, x)
        chosen = returned if self.reading.item is None or not isinstance(returned, tuple) else returned[self.reading.item]
        return self.after(self.reading.decode(chosen))


class Recurrent(nn.Module):
    """A hidden layer that feeds its spikes back, with a synaptic current."""

    def __init__(self, _):
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

    def __init__(self, _):
        super().__init__()
        sizes = (INPUTS, HIDDEN, HIDDEN, CLASSES)
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
    """Time on the second axis throughout: the readout sees [B, T, P] once, or [B * T, P] if ``fold``."""

    def __init__(self, _="none", fold=False):
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


def _layout(title, build, **options):
    """A net of snnTorch that returns membranes, for no table of the docs."""
    return Idiom(title, build, (NO_RESET,), "", "", shape=(INPUTS,), **options)


CATALOGUE = {idiom.title: idiom.at(SMALL) for idiom in IDIOMS}
LAYOUTS = (
    _layout("RSynaptic", Recurrent, readout="fc2"),
    _layout("module lists", Stack, readout="synapses.2", hidden=2),
    _layout("batch first", BatchMajor, readout="fc2"),
    _layout("batch first, folded", lambda _: BatchMajor(fold=True), readout="fc2"),
)


def _distinct(readings):
    """The first reading of each exactness."""
    return {reading.exactness: reading for reading in reversed(readings)}.values()


CASES = {
    f"{idiom.title} | {reading.title}": (idiom, reading)
    for idiom in (*CATALOGUE.values(), *LAYOUTS)
    for reading in _distinct(idiom.readings)
}
FIRST = {idiom.title: (idiom, idiom.readings[0]) for idiom in (*CATALOGUE.values(), *LAYOUTS)}

# Norse's MNIST example is trained by NLLLoss on what its decoder returns.
MULTI_STEP = CATALOGUE["Norse, multi-step layers"]
DECODED = {
    **{reading.title: (reading, "identity") for reading in LI},
    **{f"{reading.title}, log_softmax": (reading, "log_softmax") for reading in (LI[1], LI[3])},
}


def decoded(name):
    """Build a net that returns scores."""
    reading, link = DECODED[name]
    return Decoded(MULTI_STEP, reading, (lambda scores: scores.log_softmax(1)) if link == "log_softmax" else lambda scores: scores)
