"""Networks of the tests, by name: small nets for scikit-learn's digits, whose shape and parts are arguments."""

from functools import partial
from itertools import pairwise

import norse.torch as norse
import snntorch as snn
import torch
from torch import nn

STEPS, HIDDEN, PIXELS, CLASSES, BETA = 8, 48, 64, 10, 0.9


def step_through(inputs, synapses, neurons):
    """Spikes and membranes of the last neuron over time; the states of all are handed from step to step, as scripts do."""
    resting, found = [neuron.reset_mem() for neuron in neurons], []
    states = [list(state) if isinstance(state, tuple) else [state] for state in resting]
    for step in inputs:
        value = step
        for number, (synapse, neuron) in enumerate(zip(synapses, neurons, strict=True)):
            value, *states[number] = neuron(synapse(value), *states[number])
            if isinstance(neuron, snn.RLeaky | snn.RSynaptic):
                states[number] = [value, *states[number]]
        found.append((value, states[-1][-1]))
    return tuple(map(torch.stack, zip(*found, strict=True)))


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
        self.steps, self.width, self.decode = steps, hidden, decode or membranes_of

    def currents(self, x):
        """Return what a hidden layer's last spikes make of the image: its next current."""
        return lambda spikes: self.fc1(x)

    def forward(self, x):
        mem1, mem2, spikes, membranes = self.lif1.reset_mem(), self.lif2.reset_mem(), [], []
        current, fired = self.currents(x), x.new_zeros(len(x), self.width)
        for _ in range(self.steps):
            fired, mem1 = self.lif1(current(fired), mem1)
            spike, mem2 = self.lif2(self.fc2(fired), mem2)
            spikes.append(spike)
            membranes.append(mem2)
        return self.decode(torch.stack(spikes), torch.stack(membranes))


class Averaged(Loop):
    """A Loop that averages its hidden spikes over time before the last layer, which runs once."""

    def forward(self, x):
        return self.fc2(step_through([x] * self.steps, [self.fc1], [self.lif1])[0].mean(0))


class Conv(nn.Module):
    def __init__(self, steps=STEPS):
        super().__init__()
        self.conv, self.lif1 = nn.Conv2d(1, 4, 3), snn.Leaky(beta=0.5)
        self.fc, self.lif2 = nn.Linear(4 * 3 * 3, CLASSES), snn.Leaky(beta=BETA, reset_mechanism="none")
        self.pool, self.steps = nn.MaxPool2d(2), steps

    def forward(self, x):
        synapses = lambda x: self.pool(self.conv(x.view(-1, 1, 8, 8))), lambda spikes: self.fc(spikes.flatten(1))
        return step_through([x] * self.steps, synapses, (self.lif1, self.lif2))[1]


class Deep(Loop):
    """A Loop with a second hidden layer, ``inner`` and ``lif0``, which may be of any kind."""

    def __init__(self, synapse=None, neuron=None):
        torch.manual_seed(0)
        super().__init__()
        self.inner = nn.Linear(HIDDEN, HIDDEN) if synapse is None else synapse
        self.lif0 = snn.Leaky(beta=BETA) if neuron is None else neuron

    def forward(self, x):
        synapses, neurons = (self.fc1, self.inner, self.fc2), (self.lif1, self.lif0, self.lif2)
        return step_through([x] * self.steps, synapses, neurons)[1]


class Driven(Loop):
    """A Loop whose hidden neurons receive what a function makes of the net, the image and their last spikes."""

    def __init__(self, current, **options):
        super().__init__(**options)
        self.current = current

    def currents(self, x):
        return lambda spikes: self.current(self, x, spikes)


class Looped(nn.Module):
    """Layers of Norse, and the time loop in forward: ``forward`` as the option of convex_init_."""

    def __init__(self, forward, *layers):
        super().__init__()
        self.net, self.loop = norse.SequentialState(*layers), forward

    def forward(self, x):
        return self.loop(self.net, x)


class NorseRows(nn.Module):
    """Reads an 8x8 image row by row with a recurrent layer of Norse, which holds its input weights itself."""

    def __init__(self, autapses=False):
        super().__init__()
        torch.manual_seed(0)
        self.layers = norse.SequentialState(
            norse.LIFRecurrent(8, HIDDEN, autapses=autapses), nn.Linear(HIDDEN, CLASSES), norse.LI()
        )

    def forward(self, x):
        return self.layers(x.reshape(-1, 8, 8).movedim(1, 0))[0]


class Once(Loop):
    """A Loop that computes the current of its static input once, outside the time loop."""

    def currents(self, x):
        current = self.fc1(x)
        return lambda spikes: current


class Series(nn.Module):
    """A sequence (n, T, inputs) into a hidden layer of the neuron that a function makes, recurrent or not, and membranes out."""

    def __init__(self, make_neuron=lambda: snn.Leaky(beta=BETA), inputs=4, hidden=24, outputs=3, bias=True):
        super().__init__()
        torch.manual_seed(0)
        self.fc1, self.lif1 = nn.Linear(inputs, hidden, bias=bias), make_neuron()
        self.fc2, self.lif2 = nn.Linear(hidden, outputs), snn.Leaky(beta=0.95, reset_mechanism="none")

    def take_steps(self, x):
        return x.movedim(1, 0)

    def forward(self, x):
        return step_through(self.take_steps(x), (self.fc1, self.fc2), (self.lif1, self.lif2))[1]


class Recurrent(Series):
    """A recurrent layer that reads ``over(x)`` step by step, and a leaky readout."""

    def __init__(self, synapse, neuron, hidden=HIDDEN, outputs=CLASSES, beta=BETA, over=lambda x: x.expand(STEPS, *x.shape)):
        nn.Module.__init__(self)
        self.fc1, self.lif1 = synapse, neuron
        self.fc2, self.lif2 = nn.Linear(hidden, outputs), snn.Leaky(beta=beta, reset_mechanism="none")
        self.take_steps = over


class Rows(Series):
    """Reads an 8x8 image row by row with a recurrent layer: what a neuron remembers matters."""

    def __init__(self, **options):
        super().__init__(partial(snn.RLeaky, beta=0.8, linear_features=HIDDEN, **options), 8, HIDDEN, CLASSES)

    def take_steps(self, x):
        return super().take_steps(x.reshape(-1, 8, 8))


class Sequence(nn.Module):
    """Dense layers that read ``over(x)`` step by step; returns the membranes of the last, which does not reset."""

    def __init__(self, *sizes, beta=BETA, output=None, over=lambda x: x):
        super().__init__()
        self.synapses = nn.ModuleList(nn.Linear(*pair) for pair in pairwise(sizes))
        self.neurons = nn.ModuleList(snn.Leaky(beta=beta) for _ in sizes[2:])
        self.neurons.append(output or snn.Leaky(beta=beta, reset_mechanism="none"))
        self.over = over

    def forward(self, x):
        return step_through(self.over(x), self.synapses, self.neurons)[1]


class Stack(nn.Module):
    """Hidden layers of Leaky neurons, whose weights are divided by numbers; the readout sees the last one, or all of them."""

    def __init__(self, divisors=(1.0, 1.0), wide=False):
        super().__init__()
        torch.manual_seed(0)
        widths = [PIXELS, *[HIDDEN] * len(divisors)]
        self.synapses = nn.ModuleList(nn.Linear(*pair) for pair in pairwise(widths))
        self.neurons = nn.ModuleList(snn.Leaky(beta=BETA) for _ in divisors)
        self.fc, self.lif = (
            nn.Linear(HIDDEN * (len(divisors) if wide else 1), CLASSES),
            snn.Leaky(beta=BETA, reset_mechanism="none"),
        )
        self.wide = wide
        with torch.no_grad():
            for synapse, divisor in zip(self.synapses, divisors, strict=True):
                for parameter in synapse.parameters():
                    parameter.div_(divisor)

    def forward(self, x):
        states, membrane, membranes = [neuron.reset_mem() for neuron in self.neurons], self.lif.reset_mem(), []
        for _ in range(STEPS):
            value, seen = x, []
            for number, (synapse, neuron) in enumerate(zip(self.synapses, self.neurons, strict=True)):
                value, states[number] = neuron(synapse(value), states[number])
                seen.append(value)
            _, membrane = self.lif(self.fc(torch.cat(seen, dim=1) if self.wide else value), membrane)
            membranes.append(membrane)
        return torch.stack(membranes)


class Still(Series):
    """Shows the first pixels of an image at every step."""

    def take_steps(self, x):
        return x[:, : next(self.fc1.parameters()).shape[1]].expand(STEPS, -1, -1)


class TwoHeads(Loop):
    def __init__(self, **options):
        super().__init__(**options)
        self.fc3, self.lif3 = nn.Linear(HIDDEN, 3), snn.Leaky(beta=0.9, reset_mechanism="none")

    def forward(self, x):
        spikes, _ = step_through([x] * self.steps, [self.fc1], [self.lif1])
        heads = (self.fc2, self.lif2), (self.fc3, self.lif3)
        return tuple(step_through(spikes, [synapse], [neuron])[1] for synapse, neuron in heads)


# -- builders, and what a net returns --------------------------------------------------------------------------------------
def conv_net(seed=0):
    torch.manual_seed(seed)
    return Conv()


def convolutions(shape, *convs, library=snn, divisor=1.0):
    """A net for over_time: convolutions on digits seen as a given shape, divided, each before a neuron, and a readout."""
    torch.manual_seed(0)
    leaky, is_norse = partial(snn.Leaky, init_hidden=True), library is norse
    hidden = [layer for conv in convs for layer in (conv, norse.LIFCell() if is_norse else leaky(beta=0.8))]
    output = norse.LICell() if is_norse else leaky(beta=BETA, output=True, reset_mechanism="none")
    with torch.no_grad():
        for parameter in nn.ModuleList(convs).parameters():
            parameter.div_(divisor)
    made = norse.SequentialState if is_norse else nn.Sequential
    net = made(nn.Unflatten(1, shape), *hidden, nn.Flatten(), nn.LazyLinear(CLASSES), output)
    net(torch.zeros(1, PIXELS))
    return net


def loop_net(seed=0, **options):
    torch.manual_seed(seed)
    return Loop(**options)


def membranes_of(spikes, membranes):
    return membranes


def normalised_net():
    """A Sequential whose hidden layer is normalised, each row alike."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(PIXELS, HIDDEN),
        nn.BatchNorm1d(HIDDEN),
        snn.Leaky(beta=BETA, init_hidden=True),
        nn.Linear(HIDDEN, CLASSES),
        snn.Leaky(beta=BETA, init_hidden=True, output=True, reset_mechanism="none"),
    )
    net[1].running_var.fill_(0.25)
    return net.eval()


def sequential_net(seed=0, sizes=(PIXELS, HIDDEN, CLASSES), **output):
    """Build the quickstart's net, stepped from outside by over_time, with options of its output, by default without a reset."""
    torch.manual_seed(seed)
    layers = []
    for pair in pairwise(sizes):
        layers += nn.Linear(*pair), snn.Leaky(beta=BETA, init_hidden=True)
    layers[-1] = snn.Leaky(**{"beta": BETA, "reset_mechanism": "none", **output}, init_hidden=True, output=True)
    return nn.Sequential(*layers)


def shallow(decode=membranes_of, outputs=CLASSES, bias=True, steps=20, **output):
    """Build a Loop whose output neuron takes options; a spike count over fewer steps is too coarse to follow a score closely."""
    neuron = snn.Leaky(**{"beta": BETA, "reset_mechanism": "none", **output})
    return loop_net(outputs=outputs, bias=bias, steps=steps, output=neuron, decode=decode)


def spikes_and_membranes(spikes, membranes):
    return spikes, membranes


def spikes_of(spikes, membranes):
    return spikes
