"""Small nets that tests of several folders share."""

import snntorch as snn
import torch
from torch import nn

STEPS, INPUTS, HIDDEN, CLASSES = 6, 10, 16, 3


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
    def __init__(self):
        super().__init__()
        self.body = sequential()

    def forward(self, x):
        return self.body(x)


def readout_neuron(**options):
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
