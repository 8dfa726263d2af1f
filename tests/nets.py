"""Networks of the tests, by name: small nets for scikit-learn's digits, whose shape and parts are arguments."""

import itertools

import snntorch as snn
import torch
from torch import nn

STEPS, HIDDEN, PIXELS, CLASSES, BETA = 8, 48, 64, 10, 0.9


class Conv(nn.Module):
    """A convolution with pooling, and a dense readout."""

    def __init__(self, steps=STEPS):
        super().__init__()
        self.conv, self.lif1 = nn.Conv2d(1, 4, 3), snn.Leaky(beta=0.5)
        self.fc, self.lif2 = nn.Linear(4 * 3 * 3, CLASSES), snn.Leaky(beta=BETA, reset_mechanism="none")
        self.pool, self.steps = nn.MaxPool2d(2), steps

    def forward(self, x):
        mem1, mem2, membranes = self.lif1.reset_mem(), self.lif2.reset_mem(), []
        for _ in range(self.steps):
            spikes, mem1 = self.lif1(self.pool(self.conv(x.view(-1, 1, 8, 8))), mem1)
            _, mem2 = self.lif2(self.fc(spikes.flatten(1)), mem2)
            membranes.append(mem2)
        return torch.stack(membranes)


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


class Looped(nn.Module):
    """Layers of Norse, and the time loop in forward: ``forward`` as the option of convex_init_."""

    def __init__(self, forward, *layers):
        super().__init__()
        import norse.torch as norse

        self.net, self.loop = norse.SequentialState(*layers), forward

    def forward(self, x):
        return self.loop(self.net, x)


class Recurrent(nn.Module):
    """A recurrent layer that reads ``over(x)`` step by step, and a leaky readout."""

    def __init__(self, synapse, neuron, hidden=HIDDEN, outputs=CLASSES, beta=BETA, over=lambda x: x.expand(STEPS, *x.shape)):
        super().__init__()
        self.fc1, self.lif1 = synapse, neuron
        self.fc2, self.lif2 = nn.Linear(hidden, outputs), snn.Leaky(beta=beta, reset_mechanism="none")
        self.over = over

    def forward(self, x):
        state, mem2, membranes = self.lif1.reset_mem(), self.lif2.reset_mem(), []
        for step in self.over(x):
            found = self.lif1(self.fc1(step), *state)
            state = found[-2:]
            _, mem2 = self.lif2(self.fc2(found[0]), mem2)
            membranes.append(mem2)
        return torch.stack(membranes)


class Sequence(nn.Module):
    """Dense layers that read ``over(x)`` step by step; returns the membranes of the last, which does not reset."""

    def __init__(self, *sizes, beta=BETA, output=None, over=lambda x: x):
        super().__init__()
        self.synapses = nn.ModuleList(nn.Linear(*pair) for pair in itertools.pairwise(sizes))
        self.neurons = nn.ModuleList(snn.Leaky(beta=beta) for _ in sizes[2:])
        self.neurons.append(output or snn.Leaky(beta=beta, reset_mechanism="none"))
        self.over = over

    def forward(self, x):
        states, membranes = [neuron.reset_mem() for neuron in self.neurons], []
        for step in self.over(x):
            spikes = step
            for k, (synapse, neuron) in enumerate(zip(self.synapses, self.neurons, strict=True)):
                spikes, states[k] = neuron(synapse(spikes), states[k])
            membranes.append(states[-1])
        return torch.stack(membranes)


class TwoHeads(Loop):
    """Two layers that could be the readout."""

    def __init__(self):
        super().__init__()
        self.fc3, self.lif3 = nn.Linear(HIDDEN, 3), snn.Leaky(beta=0.9, reset_mechanism="none")

    def forward(self, x):
        mem1, mem2, mem3 = self.lif1.reset_mem(), self.lif2.reset_mem(), self.lif3.reset_mem()
        first, second = [], []
        for _ in range(self.steps):
            spikes, mem1 = self.lif1(self.fc1(x), mem1)
            _, mem2 = self.lif2(self.fc2(spikes), mem2)
            _, mem3 = self.lif3(self.fc3(spikes), mem3)
            first.append(mem2)
            second.append(mem3)
        return torch.stack(first), torch.stack(second)


# -- builders, and what a net returns --------------------------------------------------------------------------------------


def conv_net(seed=0):
    torch.manual_seed(seed)
    return Conv()


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


def spikes_and_membranes(spikes, membranes):
    return spikes, membranes


def spikes_of(spikes, membranes):
    return spikes
