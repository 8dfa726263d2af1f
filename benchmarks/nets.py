"""The catalogue of networks of the studies, as users write them, and how their outputs are read.

A net loops over time in ``forward`` and returns the membranes of its readout, (T, B, C), or spikes and membranes.  Initial
weights are those of the libraries, drawn from torch's generator.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import norse.torch as norse
import snntorch as snn
import torch
from snntorch import surrogate
from torch import Tensor, nn

STEPS, BETA = 25, 0.95
LEAK, OUTPUT_LEAK = 0.9, 0.95  # of nets on sequences
SLOPE = 25.0  # of snnTorch's tutorials; its default, an arc tangent, trains recurrent nets badly
Output = Tensor | tuple[Tensor, Tensor]


class OverTime(nn.Module):
    """Sequences in snnTorch: Linear, Leaky (RLeaky from all to all if recurrent), Linear, Leaky without reset."""

    def __init__(self, inputs: int, hidden: int, classes: int, recurrent: bool) -> None:
        super().__init__()
        self.hidden, self.recurrent = nn.Linear(inputs, hidden), recurrent
        self.neuron = snn.RLeaky(beta=LEAK, all_to_all=True, linear_features=hidden) if recurrent else snn.Leaky(beta=LEAK)
        self.readout, self.output = nn.Linear(hidden, classes), snn.Leaky(beta=OUTPUT_LEAK, reset_mechanism="none")

    def forward(self, x: Tensor) -> Tensor:
        state = self.neuron.reset_mem() if self.recurrent else (self.neuron.reset_mem(),)
        out, membranes = self.output.reset_mem(), []
        for step in x.unbind(1):
            found = self.neuron(self.hidden(step), *state)  # spikes and membrane
            state = found if self.recurrent else found[1:]
            _, out = self.output(self.readout(found[0]), out)
            membranes.append(out)
        return torch.stack(membranes)


class NorseRecurrent(nn.Module):
    """Sequences in Norse, its default time constants: LIFRecurrentCell, Linear, LICell."""

    def __init__(self, inputs: int, hidden: int, classes: int) -> None:
        super().__init__()
        self.neuron = norse.LIFRecurrentCell(inputs, hidden)
        self.readout, self.output = nn.Linear(hidden, classes), norse.LICell()

    def forward(self, x: Tensor) -> Tensor:
        state, out, membranes = None, None, []
        for step in x.unbind(1):
            spikes, state = self.neuron(step, state)
            membrane, out = self.output(self.readout(spikes), out)
            membranes.append(membrane)
        return torch.stack(membranes)


class Deep(nn.Module):
    """Images: 784, some hidden layers of Leaky neurons, 10 outputs read by the mean of their membranes.

    Args:
        widths: of the hidden layers.
        divisor: of all hidden weights and biases: 20 silences the net.
    """

    def __init__(self, widths: Sequence[int], divisor: float = 1.0) -> None:
        super().__init__()
        sizes = [784, *widths, 10]
        self.synapses = nn.ModuleList(nn.Linear(*pair) for pair in pairwise(sizes))
        self.neurons = nn.ModuleList(snn.Leaky(beta=BETA) for _ in widths)
        self.output = snn.Leaky(beta=BETA, reset_mechanism="none")
        with torch.no_grad():
            for synapse in self.synapses[:-1]:
                for parameter in synapse.parameters():
                    parameter.div_(divisor)

    def forward(self, x: Tensor) -> Tensor:
        states, membrane, membranes = [neuron.reset_mem() for neuron in self.neurons], self.output.reset_mem(), []
        for _ in range(STEPS):
            value = x
            for number, neuron in enumerate(self.neurons):
                value, states[number] = neuron(self.synapses[number](value), states[number])
            _, membrane = self.output(self.synapses[-1](value), membrane)
            membranes.append(membrane)
        return torch.stack(membranes)


class Convolutional(nn.Module):
    """The net of snnTorch's tutorial 6, 12C5-MP2-64C5-MP2-10, read by the mean of its output membranes."""

    def __init__(self, steps: int = STEPS, channels: tuple[int, int] = (12, 64), beta: float = 0.5) -> None:
        super().__init__()
        self.conv1, self.lif1 = nn.Conv2d(1, channels[0], 5), snn.Leaky(beta=beta)
        self.conv2, self.lif2 = nn.Conv2d(*channels, 5), snn.Leaky(beta=beta)
        self.fc, self.lif3 = nn.Linear(16 * channels[1], 10), snn.Leaky(beta=beta, reset_mechanism="none")
        self.pool, self.steps = nn.MaxPool2d(2), steps

    def forward(self, x: Tensor) -> Tensor:
        one, two, three, membranes = self.lif1.reset_mem(), self.lif2.reset_mem(), self.lif3.reset_mem(), []
        image = x.reshape(-1, 1, 28, 28)
        for _ in range(self.steps):
            spikes, one = self.lif1(self.pool(self.conv1(image)), one)
            spikes, two = self.lif2(self.pool(self.conv2(spikes)), two)
            _, three = self.lif3(self.fc(spikes.flatten(1)), three)
            membranes.append(three)
        return torch.stack(membranes)


class Tutorial5(nn.Module):
    """The net of snnTorch's tutorial 5, 784-1000-10: its output neurons reset and spike, and it returns (spikes, membranes)."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.lif1 = nn.Linear(784, 1000), snn.Leaky(beta=BETA)
        self.fc2, self.lif2 = nn.Linear(1000, 10), snn.Leaky(beta=BETA)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        one, two, emitted, membranes = self.lif1.reset_mem(), self.lif2.reset_mem(), [], []
        for _ in range(STEPS):
            spikes, one = self.lif1(self.fc1(x), one)
            out, two = self.lif2(self.fc2(spikes), two)
            emitted.append(out)
            membranes.append(two)
        return torch.stack(emitted), torch.stack(membranes)


class Norse(nn.Module):
    """784-1000-10 of Norse, LIF and LI, read by the last membrane."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = norse.SequentialState(nn.Linear(784, 1000), norse.LIF(), nn.Linear(1000, 10), norse.LI())

    def forward(self, x: Tensor) -> Tensor:
        membranes: Tensor = self.layers(x.expand(STEPS, *x.shape))[0]
        return membranes[-1]


SEQUENCE_NETS: dict[str, Callable[[int, int, int], Any]] = {  # of inputs, hidden neurons and classes
    "snntorch-recurrent": lambda *sizes: OverTime(*sizes, recurrent=True),
    "snntorch-feedforward": lambda *sizes: OverTime(*sizes, recurrent=False),
    "norse-recurrent": NorseRecurrent,
}
IMAGE_NETS: dict[str, Callable[[], nn.Module]] = {
    "784-1000-10": lambda: Deep([1000]),
    "784-1000-10, silent": lambda: Deep([1000], 20.0),
    "784-256x5-10": lambda: Deep([256] * 5),
    "784-256x10-10": lambda: Deep([256] * 10),
    "conv": Convolutional,
    "Norse 784-1000-10": Norse,
    "784-1000-10 spiking": Tutorial5,
}


def steep(net: nn.Module, slope: float = SLOPE) -> nn.Module:
    """Give snnTorch's neurons the surrogate gradient of its tutorials."""
    for module in net.modules():
        if isinstance(module, snn.SpikingNeuron):
            module.spike_grad = surrogate.fast_sigmoid(slope=slope)
    return net


def scores_of(output: Output) -> Tensor:
    """(B, C): the count of output spikes, else the mean over time where there is time."""
    if isinstance(output, tuple):
        return output[0].sum(0)
    return output.mean(0) if output.dim() == 3 else output


def loss_of(output: Output, labels: Tensor) -> Tensor:
    """Cross-entropy of the scores; for spiking outputs of their membranes at every step, as in tutorial 5."""
    if isinstance(output, tuple):
        membranes = output[1]
        return nn.functional.cross_entropy(membranes.flatten(0, 1), labels.repeat(len(membranes)))
    return nn.functional.cross_entropy(scores_of(output), labels)


@torch.no_grad()
def accuracy(net: nn.Module, inputs: Tensor, labels: Tensor, scores: Callable[[Tensor], Tensor] | None = None) -> float:
    """Share of samples whose score is the largest at their class; ``scores`` gives those of inputs, else what the net returns."""
    read, mode = scores or (lambda part: scores_of(net(part))), net.training
    net.eval()
    predicted = torch.cat([read(part).argmax(1) for part in inputs.split(500)])
    net.train(mode)
    return float((predicted == labels).double().mean())
