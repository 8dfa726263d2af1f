"""Small nets that tests of several folders share."""

import snntorch as snn
import torch
from torch import nn
from torch.nn import functional as F

STEPS, INPUTS, HIDDEN, CLASSES = 6, 10, 16, 3


class Conv(nn.Module):
    """Two convolutions with pooling and a view, for images [batch, 1, 18, 18]; returns membranes."""

    def __init__(self, gain=1.0):
        super().__init__()
        self.c1, self.l1 = nn.Conv2d(1, 4, 5), snn.Leaky(beta=0.9)
        self.c2, self.l2 = nn.Conv2d(4, 6, 3), snn.Leaky(beta=0.9)
        self.fc, self.l3, self.gain = nn.Linear(6 * 2 * 2, CLASSES), readout_neuron(), gain

    def forward(self, x):
        m1, m2, m3 = self.l1.reset_mem(), self.l2.reset_mem(), self.l3.reset_mem()
        record = []
        for _ in range(STEPS):
            z, m1 = self.l1(F.max_pool2d(self.gain * self.c1(x), 2), m1)
            z, m2 = self.l2(F.max_pool2d(self.gain * self.c2(z), 2), m2)
            _, m3 = self.l3(self.fc(z.view(z.size(0), -1)), m3)
            record.append(m3)
        return torch.stack(record)


class Dense(nn.Module):
    """Two hidden layers and a readout in a time loop; ``returns`` makes the output from spikes and membranes over time."""

    def __init__(self, returns=lambda spk, mem: (spk, mem), output=None, hidden=None, steps=STEPS, encode=None):
        super().__init__()
        hidden = hidden or (lambda: snn.Leaky(beta=0.8))
        self.fc1, self.lif1 = nn.Linear(INPUTS, HIDDEN), hidden()
        self.fc2, self.lif2 = nn.Linear(HIDDEN, HIDDEN), hidden()
        self.fc3, self.lif3 = nn.Linear(HIDDEN, CLASSES), output if output is not None else readout_neuron()
        self.returns, self.steps, self.encode = returns, steps, encode or nn.Identity()
        with torch.no_grad():
            for layer in (self.fc1, self.fc2):
                layer.weight.mul_(3)

    def reset(self):
        for lif in (self.lif1, self.lif2, self.lif3):
            lif.reset_mem()

    def step(self, x):
        """Return the output spikes of a step."""
        z = self.lif1(self.fc1(x))[0]
        z = self.lif2(self.fc2(z))[0]
        return self.lif3(self.fc3(z))[0]

    def forward(self, x):
        self.reset()
        x, spk, mem = self.encode(x), [], []
        for _ in range(self.steps):
            spk.append(self.step(x))
            mem.append(self.lif3.mem)
        return self.returns(torch.stack(spk), torch.stack(mem))


class Logits(nn.Module):
    """A readout without a neuron, called at each step or once; ``steps`` is a number, or a function of the inputs."""

    def __init__(self, layout="steps", decode=lambda values: values, steps=STEPS):
        super().__init__()
        self.fc1, self.lif, self.fc2 = nn.Linear(INPUTS, 8), snn.Leaky(beta=0.9), nn.Linear(8, CLASSES)
        self.layout, self.decode, self.steps = layout, decode, steps

    def spikes(self, x):
        mem, spk = self.lif.reset_mem(), []
        for _ in range(self.steps(x) if callable(self.steps) else self.steps):
            z, mem = self.lif(3 * self.fc1(x), mem)
            spk.append(z)
        return spk

    def forward(self, x):
        spk = self.spikes(x)
        if self.layout == "steps":
            return self.decode(torch.stack([self.fc2(z) for z in spk]))
        return self.decode(self.fc2(torch.stack(spk, dim=1 if self.layout == "batch_first" else 0)))


class Nested(nn.Module):
    """The net of :func:`sequential` within another module."""

    def __init__(self):
        super().__init__()
        self.body = sequential()

    def forward(self, x):
        return self.body(x)


class Recurrent(nn.Module):
    """A hidden layer that feeds its spikes back to all of its units; returns membranes."""

    def __init__(self):
        super().__init__()
        self.fc1, self.l1 = nn.Linear(INPUTS, HIDDEN), snn.RLeaky(beta=0.9, linear_features=HIDDEN)
        self.fc2, self.l2 = nn.Linear(HIDDEN, CLASSES), readout_neuron()

    def forward(self, x):
        (spk, mem), out = self.l1.reset_mem(), self.l2.reset_mem()
        record = []
        for _ in range(STEPS):
            spk, mem = self.l1(3 * self.fc1(x), spk, mem)
            _, out = self.l2(self.fc2(spk), out)
            record.append(out)
        return torch.stack(record)


class TwoHeads(nn.Module):
    """A body with two layers that could be the readout; returns the membranes of both."""

    def __init__(self):
        super().__init__()
        self.body, self.lif = nn.Linear(INPUTS, HIDDEN), snn.Leaky(beta=0.8)
        self.fc_a, self.lif_a = nn.Linear(HIDDEN, CLASSES), readout_neuron()
        self.fc_b, self.lif_b = nn.Linear(HIDDEN, 2), readout_neuron()

    def forward(self, x):
        m, a, b = self.lif.reset_mem(), self.lif_a.reset_mem(), self.lif_b.reset_mem()
        left, right = [], []
        for _ in range(STEPS):
            z, m = self.lif(3 * self.body(x), m)
            _, a = self.lif_a(self.fc_a(z), a)
            _, b = self.lif_b(self.fc_b(z), b)
            left.append(a)
            right.append(b)
        return torch.stack(left), torch.stack(right)


def conv_sequential():
    """A convolution stepped from outside, for images [batch, 1, 18, 18]."""
    return nn.Sequential(
        nn.Conv2d(1, 4, 5),
        nn.MaxPool2d(2),
        snn.Leaky(beta=0.9, init_hidden=True),
        nn.Flatten(),
        nn.Linear(4 * 7 * 7, CLASSES),
        readout_neuron(init_hidden=True, output=True),
    )


def readout_neuron(**options):
    """An output neuron that never resets."""
    return snn.Leaky(**{"beta": 0.9, "reset_mechanism": "none", **options})


def sequential(**output):
    """The quickstart's net: stepped from outside, states kept in the neurons."""
    net = nn.Sequential(
        nn.Flatten(),
        nn.Linear(INPUTS, HIDDEN),
        snn.Leaky(beta=0.8, init_hidden=True),
        nn.Linear(HIDDEN, CLASSES),
        readout_neuron(**{"init_hidden": True, "output": True, **output}),
    )
    with torch.no_grad():
        net[1].weight.mul_(3)
    return net
