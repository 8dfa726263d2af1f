"""Networks of the tests, by name: small nets for scikit-learn's digits, whose shape and parts are arguments."""

import itertools

import snntorch as snn
import torch
from torch import nn

STEPS, HIDDEN, PIXELS, CLASSES, BETA = 8, 48, 64, 10, 0.9


class Loop(nn.Module):
    """One hidden layer, the time loop in forward as in snnTorch's tutorials; ``decode`` takes spikes and membranes over time."""

    def __init__(
        self, bias=True, hidden=HIDDEN, steps=STEPS, inputs=PIXELS, outputs=CLASSES, hidden_neuron=None, output=None, decode=None
    ):
        super().__init__()
        self.fc1 = nn.Linear(inputs, hidden)
        self.lif1 = snn.Leaky(beta=BETA) if hidden_neuron is None else hidden_neuron
        self.fc2 = nn.Linear(hidden, outputs, bias=bias)
        self.lif2 = snn.Leaky(beta=BETA, reset_mechanism="none") if output is None else output
        self.register_buffer("visits", torch.zeros(3))
        self.steps, self.decode = steps, decode or membranes_of

    def forward(self, x):
        mem1, mem2, spikes, membranes = self.lif1.reset_mem(), self.lif2.reset_mem(), [], []
        for _ in range(self.steps):
            fired, mem1 = self.lif1(self.fc1(x), mem1)
            spike, mem2 = self.lif2(self.fc2(fired), mem2)
            spikes.append(spike)
            membranes.append(mem2)
        return self.decode(torch.stack(spikes), torch.stack(membranes))


# -- builders, and what a net returns --------------------------------------------------------------------------------------


def loop_net(seed=0, **options):
    torch.manual_seed(seed)
    return Loop(**options)


def membranes_of(spikes, membranes):
    return membranes


def sequential_net(seed=0, sizes=(PIXELS, HIDDEN, CLASSES), output=None):
    """Build the quickstart's net, stepped from outside by over_time; its output does not reset."""
    torch.manual_seed(seed)
    layers = []
    for pair in itertools.pairwise(sizes):
        layers += nn.Linear(*pair), snn.Leaky(beta=BETA, init_hidden=True)
    layers[-1] = output or snn.Leaky(beta=BETA, init_hidden=True, output=True, reset_mechanism="none")
    return nn.Sequential(*layers)


def shallow(decode=membranes_of, outputs=CLASSES, bias=True, steps=20, **output):
    """Build a Loop whose output neuron takes options; a spike count over fewer steps is too coarse to follow a score closely."""
    neuron = snn.Leaky(**{"beta": BETA, "reset_mechanism": "none", **output})
    return loop_net(outputs=outputs, bias=bias, steps=steps, output=neuron, decode=decode)


def spikes_and_membranes(spikes, membranes):
    return spikes, membranes
