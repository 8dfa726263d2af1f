"""The networks of the hidden-layer study: fully connected, convolutional and recurrent snnTorch nets, and a Norse net."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import norse.torch as norse
import snntorch as snn
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from snn_recon_plugin.demo import Data

__all__ = ["NETWORKS", "Deep", "accuracy", "fluctuation_driven_", "fluctuations", "loader_of", "loss_of", "scores_of"]

STEPS, BETA = 25, 0.95


class Deep(nn.Module):
    """784, some hidden layers of Leaky neurons, 10 outputs read by the mean of their membranes.

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
    """The net of snnTorch's tutorial 6, 12C5-MP2-64C5-MP2-10, beta 0.5, read by the mean of its output membranes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.lif1 = nn.Conv2d(1, 12, 5), snn.Leaky(beta=0.5)
        self.conv2, self.lif2 = nn.Conv2d(12, 64, 5), snn.Leaky(beta=0.5)
        self.fc, self.lif3 = nn.Linear(1024, 10), snn.Leaky(beta=0.5, reset_mechanism="none")
        self.pool = nn.MaxPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        one, two, three, membranes = self.lif1.reset_mem(), self.lif2.reset_mem(), self.lif3.reset_mem(), []
        image = x.reshape(-1, 1, 28, 28)
        for _ in range(STEPS):
            spikes, one = self.lif1(self.pool(self.conv1(image)), one)
            spikes, two = self.lif2(self.pool(self.conv2(spikes)), two)
            _, three = self.lif3(self.fc(spikes.flatten(1)), three)
            membranes.append(three)
        return torch.stack(membranes)


class Spiking(nn.Module):
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


class Recurrent(nn.Module):
    """Reads an image row by row, 28 steps of 28 pixels: 28-256-10, RLeaky, read by the mean of the output membranes."""

    def __init__(self, width: int = 256) -> None:
        super().__init__()
        self.fc1, self.lif1 = nn.Linear(28, width), snn.RLeaky(beta=0.9, linear_features=width)
        self.fc2, self.lif2 = nn.Linear(width, 10), snn.Leaky(beta=BETA, reset_mechanism="none")

    def forward(self, x: Tensor) -> Tensor:
        (spikes, one), two, membranes = self.lif1.init_rleaky(), self.lif2.reset_mem(), []
        for row in x.reshape(-1, 28, 28).unbind(1):
            spikes, one = self.lif1(self.fc1(row), spikes, one)
            _, two = self.lif2(self.fc2(spikes), two)
            membranes.append(two)
        return torch.stack(membranes)


class Norse(nn.Module):
    """784-1000-10 of Norse, LIF and LI, read by the last membrane."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = norse.SequentialState(nn.Linear(784, 1000), norse.LIF(), nn.Linear(1000, 10), norse.LI())

    def forward(self, x: Tensor) -> Tensor:
        membranes: Tensor = self.layers(x.expand(STEPS, *x.shape))[0]
        return membranes[-1]


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "784-1000-10": lambda: Deep([1000]),
    "784-1000-10, silent": lambda: Deep([1000], 20.0),
    "784-256x5-10": lambda: Deep([256] * 5),
    "784-256x10-10": lambda: Deep([256] * 10),
    "conv": Convolutional,
    "Norse 784-1000-10": Norse,
    "recurrent 28-256-10": Recurrent,
    "784-1000-10 spiking": Spiking,
}


def scores_of(output: Tensor | tuple[Tensor, Tensor]) -> Tensor:
    """(B, C): the count of output spikes, else the mean over time where there is time."""
    if isinstance(output, tuple):
        return output[0].sum(0)
    return output.mean(0) if output.dim() == 3 else output


def loss_of(output: Tensor | tuple[Tensor, Tensor], labels: Tensor) -> Tensor:
    """Cross-entropy of the scores; for spiking outputs of their membranes at every step, as in tutorial 5."""
    if isinstance(output, tuple):
        membranes = output[1]
        return nn.functional.cross_entropy(membranes.flatten(0, 1), labels.repeat(len(membranes)))
    return nn.functional.cross_entropy(scores_of(output), labels)


@torch.no_grad()
def fluctuation_driven_(net: nn.Module, inputs: Tensor, target: float = 1.0) -> None:
    """Fluctuation-driven initialisation of a snnTorch net, after Rossbroich, Gygax and Zenke (2022), our own writing.

    Weights are normal with mean zero, which leaves the membrane at rest on average, and a standard deviation that puts the
    threshold ``1 / target`` standard deviations of the membrane's fluctuations above it.  The paper derives both from Poisson
    inputs of a known rate; here the fluctuations are measured, layer by layer from the input up, which covers static images too.
    Recurrent weights stay.

    Args:
        net: the net; its hidden layers are overwritten.  Layers and neurons are its attributes in the order in which they run.
        inputs: some samples, as the net takes them.
        target: standard deviations of the membrane between rest and threshold, inverted; the paper's advice is about 1.
    """
    neurons = [module for module in net.modules() if isinstance(module, snn.SpikingNeuron)]
    inner = {id(part) for neuron in neurons for part in neuron.modules()}
    synapses = [part for part in net.modules() if isinstance(part, nn.Linear | nn.Conv2d) and id(part) not in inner]
    for synapse, neuron in zip(synapses[:-1], neurons[:-1], strict=True):
        nn.init.normal_(synapse.weight, 0.0, synapse.weight[0].numel() ** -0.5)
        if synapse.bias is not None:
            nn.init.zeros_(synapse.bias)
        synapse.weight.mul_(target * float(neuron.threshold) / fluctuations(net, neuron, inputs))


@torch.no_grad()
def fluctuations(net: nn.Module, neuron: nn.Module, inputs: Tensor) -> float:
    """Return the root mean square of a neuron's membrane over samples, units and steps if it never reset."""
    powers: list[Tensor] = []
    membrane = torch.zeros(())

    def filtered(module: nn.Module, arguments: tuple[Any, ...]) -> None:
        nonlocal membrane
        membrane = torch.as_tensor(module.beta) * membrane + arguments[0]
        powers.append(membrane.square().mean())

    handle = neuron.register_forward_pre_hook(filtered)
    try:
        net(inputs)
    finally:
        handle.remove()
    return math.sqrt(float(torch.stack(powers).mean()))


def accuracy(net: nn.Module, data: Data) -> float:
    """Test accuracy by the mean membrane, or the last where the net returns that."""
    right = 0
    with torch.no_grad():
        for inputs, labels in zip(data.test_inputs.split(1000), data.test_labels.split(1000), strict=True):
            right += int((scores_of(net(inputs)).argmax(1) == labels).sum())
    return right / len(data.test_labels)


def loader_of(data: Data) -> DataLoader[Any]:
    """The training data in order."""
    return DataLoader(TensorDataset(data.train_inputs, data.train_labels), 1000)
